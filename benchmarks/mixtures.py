"""Runs of one recipe side by side: makes those that are missing, and writes their evaluations as one page.

Knows nothing of what a run computes: reads evaluation.json and the manifests of each run directory.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import moesaic
from benchmarks.page import RECIPES, Options, Page
from moesaic.files import MANIFEST, read_json
from moesaic.recipe import ExistingBase
from moesaic.recipe import read as read_recipe

Overrides = Mapping[str, tuple[str, ...]]
"""Name of a run -> what takes the place of the recipe's own values."""


@dataclass(frozen=True)
class Compared:
    """Runs of a file in recipes/. `texts`: they read texts of other people; `stories`: over their model stories260K;
    `smollm2`: over the folder that MOESAIC_SMOLLM2 names, or the recipe's own base.
    """

    recipe: str
    runs: Overrides
    texts: bool = True
    stories: bool = False
    smollm2: bool = False
    quick: tuple[str, ...] = ()
    """More small sizes, of what only this recipe has."""

    def overrides(self, run: str, options: Options) -> list[str]:
        """What one run puts in place of the recipe's values, folders of other people included."""
        found = [f"data_root={options.shared / 'data'}"] if self.texts else []
        found += [f"base.path={options.shared / 'models/stories260K'}"] if self.stories else []
        found += (
            [f"base.path={os.environ['MOESAIC_SMOLLM2']}"] if self.smollm2 and "MOESAIC_SMOLLM2" in os.environ else []
        )
        return [*found, *self.runs[run], *((*QUICK, *self.quick) if options.quick else ())]


EXPERTS_OF_THE_DEMO = ("experts.dialogue.train", "experts.math.train", "experts.prose.train")
SEEDS: Overrides = {f"seed-{seed}": (f"seed={seed}",) for seed in range(3)}
COMPARED = {
    "demo": Compared(
        "demo.yaml",
        SEEDS,
        texts=False,
        quick=tuple(f"{one}.steps=2" for one in ("evaluate.joint", "evaluate.joint_wide", *EXPERTS_OF_THE_DEMO)),
    ),
    "five-domains": Compared("five-domains.yaml", SEEDS),
    "stories260k": Compared("stories.yaml", SEEDS, stories=True),
    "franken-stories": Compared(
        "franken-stories.yaml",
        {
            "sequence": (),
            "token": ("mixture.level=token",),
            "tiny": ("base.path=shipped:tiny", "train.lr=1e-3"),
        },
        stories=True,
    ),
    "gated-pair": Compared(
        "gated-pair.yaml", {"stories260K": (), "tiny": ("base.path=shipped:tiny", "train.lr=3e-3")}, stories=True
    ),
    "smollm2": Compared(
        "smollm2.yaml", {"seed-0": ()}, smollm2=True, quick=("evaluate.joint.steps=2", "evaluate.joint_wide.steps=2")
    ),
}
QUICK = (
    "workers=1",
    "train.steps=2",
    "train.batch=2",
    "train.length=32",
    "router.examples=8",
    "router.epochs=1",
    "evaluate.limit=4",
)
SHOWN = ("base", "joint", "joint_wide", "average", "uniform", "random", "keyword", "router", "oracle", "oracle_best")
TRAINED_ALIKE = ("joint",)
"""The controls, beside every expert, that a mixture must beat to be worth its parts."""


def page(name: str, options: Options) -> Page:
    """Make the runs that are not finished, and compare all of them."""
    of = COMPARED[name]
    wanted = list(of.runs)[: 1 if options.quick else None]
    places = {run: options.runs / f"{name}-{run}" for run in wanted}
    for run, place in places.items():
        moesaic.run(read_recipe(RECIPES / of.recipe, [f"name={name}-{run}", *of.overrides(run, options)]), place)
    machines = {place.name: read_json(place / "evaluation.json")["timing"].get("machine") for place in places.values()}
    how = "\n".join(f"- {command(of, name, run)}" for run in wanted)
    return Page(f"The runs by hand:\n\n{how}\n\n{report(list(places.values()))}", machines)


def command(of: Compared, name: str, run: str) -> str:
    """How one run is made by hand, with no folder of this machine."""
    shared, own = Options(Path(), Path("shared")), os.environ.get("MOESAIC_SMOLLM2")
    words = ["moesaic run", f"recipes/{of.recipe}", f"name={name}-{run}", *of.overrides(run, shared)]
    return f"`{' '.join('base.path=path/to/model' if word == f'base.path={own}' else word for word in words)}`"


def report(runs: list[Path]) -> str:
    evaluations = [read_json(run / "evaluation.json") for run in runs]
    labels = [labelled(run, evaluation, runs) for run, evaluation in zip(runs, evaluations, strict=True)]
    lines = [
        *(f"- {label}: {one['verdict']['sentence']}" for label, one in zip(labels, evaluations, strict=True)),
        "",
        "Nats per token on the test rows of all domains, by run; in brackets the contender minus the router with its",
        "paired 95% interval (bootstrap over source rows, stratified by domain).",
        "",
        f"| contender | {' | '.join(labels)} |",
        "|---" * (len(labels) + 1) + "|",
    ]
    experts = [name for name in evaluations[0]["controls"] if name.startswith("expert:")]
    for name in there(evaluations, ("base", *experts, *SHOWN[1:])):
        lines.append(f"| {name} | {' | '.join(cell(evaluation['controls'][name]) for evaluation in evaluations)} |")
    rows = {
        "gap closed": [bracketed(evaluation["gap_closed"]) for evaluation in evaluations],
        "regret": [bracketed(evaluation["regret"]) for evaluation in evaluations],
        "router accuracy": [f"{evaluation['router']['accuracy']:.3f}" for evaluation in evaluations],
        "router macro-F1": [f"{evaluation['router']['macro_f1']:.3f}" for evaluation in evaluations],
        f"better than every expert and {', '.join(TRAINED_ALIKE)}": [beaten(evaluation) for evaluation in evaluations],
        "verdict": [evaluation["verdict"]["use"] for evaluation in evaluations],
        "unseen: base / router": [unseen(evaluation) for evaluation in evaluations],
        "seconds": [f"{sum(evaluation['timing']['stages'].values()):.0f}" for evaluation in evaluations],
    }
    lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]
    lines += ["", *by_domain(evaluations), "", *tried(labels, evaluations), *rates(labels, runs)]
    return "\n".join(lines) + "\n"


def labelled(run: Path, evaluation: dict[str, Any], runs: list[Path]) -> str:
    """What a run is told by: its seed; and its base, level and rates, where the runs differ in them."""

    def settings(at: Path) -> dict[str, str]:
        recipe = read_recipe(at / "recipe.yaml")
        base = Path(recipe.base.path).name if isinstance(recipe.base, ExistingBase) else "its own base"
        rates = recipe.train.lr if isinstance(recipe.train.lr, list) else [recipe.train.lr]
        tried = f"rates {', '.join(f'{rate:g}' for rate in rates)}"
        return {"base": f"over {base}", "level": f"level {recipe.mixture.level}", "rates": tried}

    own, all_of_them = settings(run), [settings(one) for one in runs]
    differ = [own[key] for key in own if len({one[key] for one in all_of_them}) > 1]
    return ", ".join([*differ, f"seed {evaluation['seed']}"])


def there(evaluations: list[dict[str, Any]], names: Iterable[str]) -> list[str]:
    """Those contenders that were computed."""
    return [name for name in names if all(name in evaluation["controls"] for evaluation in evaluations)]


def tried(labels: list[str], evaluations: list[dict[str, Any]]) -> list[str]:
    """Every router of a run: how often it is right, on prompts of one length too, and how evenly it chooses."""
    lines: list[str] = []
    for label, evaluation in zip(labels, evaluations, strict=True):
        every = evaluation["router"]["tried"]
        if len(every) < 2 or "matched" not in every[0]:
            continue
        tokens = every[0]["matched"]["tokens"]
        lines += [
            f"Routers, {label}: accuracy on whole prompts and on their {tokens} middle tokens, and who is chosen.",
            "",
            f"| router | loss | nats | accuracy | on {tokens} tokens | share of rows | evenness |",
            "|---" * 7 + "|",
        ]
        for one in every:
            shares = ", ".join(f"{name} {share:.3f}" for name, share in one["utilisation"].items())
            name = f"{one['kind']} on {one['feature']}, {one['selection']}"
            name += ", before every token" if one.get("level") == "token" else ""
            lines.append(
                f"| {name} | {one['loss'] or '-'} | {one['nats']:.3f} | {one['accuracy']:.3f} "
                f"| {one['matched']['accuracy']:.3f} | {shares} | {one['utilisation_evenness']:.4f} |"
            )
        lines.append("")
    return lines


def beaten(evaluation: dict[str, Any]) -> str:
    """Whether the whole interval of each of these minus the router is above 0, and the smallest lower end."""
    controls = evaluation["controls"]
    rivals = [name for name in controls if name.startswith("expert:") or name in TRAINED_ALIKE]
    lows = {name: controls[name]["versus_router"]["interval"][0] for name in rivals}
    nearest = min(lows, key=lambda name: lows[name])
    return f"{'yes' if lows[nearest] > 0 else 'no'}: {nearest} from {lows[nearest]:+.3f}"


def by_domain(evaluations: list[dict[str, Any]]) -> list[str]:
    """The table of each domain's nats, of those contenders that say what a part gains and what sharing costs."""
    controls = evaluations[0]["controls"]
    experts = [name for name in controls if name.startswith("expert:")]
    domains = [
        name.removeprefix("expert:") for name in experts if name.removeprefix("expert:") in controls[name]["nats"]
    ]
    lines = ["Nats per token by domain, the runs side by side.", "", f"| contender | {' | '.join(domains)} |"]
    lines.append("|---" * (len(domains) + 1) + "|")
    for name in there(evaluations, ("base", *experts, "joint", "joint_wide", "router", "oracle")):
        found = [
            " / ".join(f"{evaluation['controls'][name]['nats'][domain]:.3f}" for evaluation in evaluations)
            for domain in domains
        ]
        lines.append(f"| {name} | {' | '.join(found)} |")
    return lines


def rates(labels: list[str], runs: list[Path]) -> list[str]:
    """The table of the learning rates that were chosen on validation, where a contender had several to choose from."""
    lines = ["Learning rates chosen on validation, of those in brackets with their validation nats per token.", ""]
    lines += [f"| contender | {' | '.join(labels)} |", "|---" * (len(runs) + 1) + "|"]
    parts = sorted(path.parent for path in runs[0].glob("*/*/best/manifest.json"))
    for part in parts:
        found = [read_json(run / part.relative_to(runs[0]) / MANIFEST) for run in runs]
        lines.append(f"| {part.parent.name} | {' | '.join(chosen(manifest) for manifest in found)} |")
    return lines


def chosen(manifest: dict[str, Any]) -> str:
    tried = ", ".join(f"{lr}: {'diverged' if nats is None else f'{nats:.3f}'}" for lr, nats in manifest["grid"].items())
    return f"**{manifest['lr']:g}** ({tried})"


def cell(control: dict[str, Any]) -> str:
    versus = control["versus_router"]
    if versus is None:
        return f"**{control['nats']['all']:.3f}**"
    low, high = versus["interval"]
    return f"{control['nats']['all']:.3f} ({versus['difference']:+.3f} [{low:+.3f}, {high:+.3f}])"


def bracketed(estimate: dict[str, Any]) -> str:
    if estimate["interval"] is None:
        return str(estimate["reason"])
    low, high = estimate["interval"]
    return f"{estimate['value']:.3f} [{low:.3f}, {high:.3f}]"


def unseen(evaluation: dict[str, Any]) -> str:
    nats = {name: evaluation["controls"][name]["nats"].get("unseen") for name in ("base", "router")}
    return "none given" if nats["base"] is None else f"{nats['base']:.3f} / {nats['router']:.3f}"
