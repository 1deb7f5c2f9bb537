"""The page five-domains-smollm2: the published table beside ours, next steps, routers, merges and exact answers.

Knows nothing about how a figure was computed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.page import Page
from moesaic.evaluate.statistics import Difference, Means, Scores
from moesaic.ops.metrics import of_a_share

PUBLISHED_LOSS = {"math": 1.23, "reasoning": 1.84, "code": 1.57, "conversation": 2.45, "knowledge": 1.74}
"""Validation losses that the document reports, over Gemma-3-270M."""
MERGES = ("average", "uniform")
Found = Mapping[str, Any]


def report(
    runs: Mapping[str, Found], steps: Mapping[str, Found], answered: Mapping[str, Found], missing: Sequence[str]
) -> Page:
    """The whole page. `runs`: evaluations by step; `steps`: other findings by step; `missing`: steps not run."""
    first, own = next(iter(runs)), next(iter(steps.values()))
    parts = [
        f"- {runs[first]['verdict']['sentence']}",
        published(own),
        against(runs[first], own),
        routers(runs[first]),
        exact(answered),
        next_steps(runs, steps, missing),
    ]
    return Page("\n\n".join(parts) + "\n", {step: run["timing"].get("machine") for step, run in runs.items()})


def published(own: Found) -> str:
    """The document's validation losses beside ours."""
    lines = [
        "## The published table",
        "",
        "Validation loss in nats per token. Theirs is over Gemma-3-270M, with another tokenizer, on other rows, and of",
        "prompts and responses together; ours is of responses alone. So the columns are no comparison of two systems:",
        "what counts is the distance from our base.",
        "",
        "| domain | theirs | our base | our expert | gain |",
        "|---|---|---|---|---|",
    ]
    for domain, theirs in PUBLISHED_LOSS.items():
        one = own["validation"][domain]
        lines.append(
            f"| {domain} | {theirs:.2f} | {one['base']:.3f} | {one['validation_nats']:.3f} | {one['gain']:+.3f} |"
        )
    return "\n".join(lines)


def against(run: Found, own: Found) -> str:
    """The mixture against the base, every expert, the joint controls and every merge, on all test rows."""
    controls = run["controls"]
    lines = [
        "## The mixture against its parts and merges",
        "",
        "Nats per token on the test rows of all domains, the contender minus the mixture with its paired 95% interval,",
        "and whether the whole interval is above 0.",
        "",
        "| contender | nats | minus the mixture | mixture better |",
        "|---|---|---|---|",
    ]
    names = [name for name in controls if name.startswith("expert:")]
    for name in ("router", "base", *names, "joint", "joint_wide", "keyword", "oracle", *MERGES):
        if name in controls:
            versus = controls[name]["versus_router"]
            figures = "- | -" if versus is None else told(Difference(versus["difference"], *versus["interval"]))
            lines.append(f"| {name} | {controls[name]['nats']['all']:.3f} | {figures} |")
    router = scores_of(own["rows"]["router"])
    for rule, one in own.get("merges", {}).items():
        means = Means.of({"merge": scores_of(one), "router": router})
        tried = ", ".join(f"{scale}: {nats:.3f}" for scale, nats in one["validation"].items())
        name = f"{rule}, scale {one['scale']:g} of {tried} on validation"
        lines.append(f"| {name} | {means.value['merge']:.3f} | {told(means.difference('merge', 'router'))} |")
    return "\n".join(lines)


def told(difference: Difference) -> str:
    better = "yes" if difference.low > 0 else "no" if difference.high < 0 else "not clear"
    return f"{difference.mean:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}] | {better}"


def routers(run: Found) -> str:
    """Every router on one table: labels are the data sets that prompts come from."""
    domains = run["domains"]
    lines = [
        "## Routers",
        "",
        "Share of test prompts that go to the expert of the data set that they come from, the nats of the mixture",
        "under each router, text of no domain that is left to the base, and the share of test rows of each expert.",
        "",
        f"| router | accuracy | macro-F1 | nats | neutral text to the base | {' | '.join(domains)} | base |",
        "|---" * (6 + len(domains)) + "|",
    ]
    for one in run["router"]["tried"]:
        name = f"{one['kind']} on {one['feature']}, {one['selection']}"
        left = one["outside"]["abstained"] if "outside" in one else None
        shares = " | ".join(f"{one['utilisation'].get(domain, 0):.3f}" for domain in (*domains, "base"))
        lines.append(
            f"| {name} | {one['accuracy']:.3f} | {one['macro_f1']:.3f} | {one['nats']:.3f} "
            f"| {'never' if left is None else f'{left:.3f}'} | {shares} |"
        )
    return "\n".join(lines)


def exact(answered: Mapping[str, Found]) -> str:
    """Exact answers with their intervals."""
    lines = [
        "## Exact answers",
        "",
        "Greedy answers to test questions: the number behind `####`, or else the last number (gsm8k); the first letter",
        "given as a choice (arc). In brackets the 95% interval of Wilson.",
        "",
        "| test set | contender | right | share | seconds |",
        "|---|---|---|---|---|",
    ]
    for name, contenders in answered.items():
        for contender, one in contenders.items():
            low, high = of_a_share(one["right"], one["rows"])
            share = f"{one['right'] / one['rows']:.3f} [{low:.3f}, {high:.3f}]"
            lines.append(f"| {name} | {contender} | {one['right']} of {one['rows']} | {share} | {one['seconds']:.0f} |")
    return "\n".join(lines)


def next_steps(runs: Mapping[str, Found], steps: Mapping[str, Found], missing: Sequence[str]) -> str:
    """What each next step gains over the published setting, by domain and as a mixture, and what was not run."""
    first, *others = steps
    domains = [*PUBLISHED_LOSS]
    lines = [
        "## Next steps",
        "",
        "The published setting minus the step, in nats per token of the same test rows, with paired 95% intervals:",
        "above 0 the step is better. By domain the domain's own expert; last the mixture on all rows.",
        "",
        f"| step | {' | '.join(domains)} | mixture | minutes |",
        "|---" * (3 + len(domains)) + "|",
        f"| {first} | {' | '.join('-' for _ in domains)} | - | {minutes(runs[first], steps[first])} |",
    ]
    for step in others:
        own = {name: (scores_of(steps[first]["rows"][name]), scores_of(steps[step]["rows"][name])) for name in ROWS_OF}
        cells = [gain(*own["oracle"], domain) for domain in domains] + [gain(*own["router"])]
        lines.append(f"| {step} | {' | '.join(cells)} | {minutes(runs[step], steps[step])} |")
    told = f"Not run: {', '.join(missing)}; `python -m benchmarks five-domains-smollm2 --next STEP` runs one."
    return "\n".join([*lines, "", told if missing else "All of them were run."])


ROWS_OF = ("oracle", "router")


def gain(before: Scores, after: Scores, *domain: str) -> str:
    found = Means.of({"before": before, "after": after}, *domain).difference("before", "after")
    return f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def minutes(run: Found, found: Found) -> str:
    return f"{(sum(run['timing']['stages'].values()) + found['seconds']) / 60:.0f}"


def scores_of(kept: Found) -> Scores:
    """Scores by row as they are kept in findings."""
    return Scores(
        np.array(kept["nats"], np.float64), np.array(kept["tokens"], np.float64), kept["domains"], kept["groups"]
    )
