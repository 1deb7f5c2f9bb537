"""Routers over the same experts in one table: nats with intervals, by domain, beside what each costs.

Knows nothing about models or run directories: scores and costs come in, plain data and text go out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from moesaic.evaluate.statistics import ALL, UNSEEN, Difference, Judged, Means

BASE = "base"


@dataclass(frozen=True)
class Arm:
    """One way to answer: where and how often it decides, by what, and what it costs.

    `tokens`: those that its gates were trained on; `least_load`: of the expert with the fewest tokens in any layer, as
    a share of the mean; None where a figure means nothing.
    """

    site: str
    level: str
    gate: str
    k: int | None = None
    balance: str = ""
    active: int | None = None
    tokens_per_second: float | None = None
    tokens: int | None = None
    least_load: float | None = None

    @property
    def deployable(self) -> bool:
        """Whether it needs no hindsight: not an oracle."""
        return self.level != "oracle"


def compared(arms: Mapping[str, Arm], scores: Mapping[str, Judged], seed: int) -> dict[str, Any]:
    """Every arm with its nats, their interval, and its differences to the base, by domain; and the verdict."""
    domains = [ALL, *sorted({*scores[BASE].domains} - {UNSEEN}), *([UNSEEN] if UNSEEN in scores[BASE].domains else [])]
    means = {domain: Means.of(scores, domain, seed=seed) for domain in domains}
    rows = {}
    for name, arm in arms.items():
        nats = {domain: some.value[name] for domain, some in means.items()}
        to_base = {domain: [*some.difference(name, BASE)] for domain, some in means.items()}
        weakest = max((domain for domain in domains if domain != ALL), key=lambda domain: to_base[domain][0])
        rows[name] = {
            **asdict(arm),
            "nats": nats,
            "interval": [*means[ALL].interval(name)],
            "to_base": to_base,
            "weakest": weakest,
        }
    return {"domains": domains, "arms": rows, "verdict": verdict(arms, means)}


def verdict(arms: Mapping[str, Arm], means: Mapping[str, Means]) -> dict[str, Any]:
    """The best arm of each level, and the differences between these on all domains and on unseen text."""

    def best(level: str) -> str | None:
        some = [name for name, arm in arms.items() if arm.level == level]
        return min(some, key=means[ALL].value.__getitem__) if some else None

    found = {level: name for level in ("dense", "sequence", "token") if (name := best(level))}
    winner = min(found.values(), key=means[ALL].value.__getitem__)
    others = [name for name in found.values() if name != winner]
    beyond = {domain: {name: [*some.difference(winner, name)] for name in others} for domain, some in means.items()}
    return {"winner": winner, "best": found, "differences": beyond}


# --- as text ----------------------------------------------------------------------------------------------------------


def sentence(figures: Mapping[str, Any]) -> str:
    """Who won, by how much, what it cost, and what it lost on unseen text."""
    told, arms = figures["verdict"], figures["arms"]
    winner, own = told["winner"], arms[told["winner"]]
    rivals = [
        f"{'beats' if Difference(*found).clear else 'ties with'} {name}, by {shown(found)}"
        for name, found in told["differences"][ALL].items()
    ]
    text = f"The best is {winner} ({own['nats'][ALL]:.3f} nats a token): it {' and '.join(rivals)}."
    if own["tokens"]:
        text += f" Its gates were trained on {own['tokens']:,} tokens."
    domain = UNSEEN if UNSEEN in figures["domains"] else own["weakest"]
    place = "On unseen text" if domain == UNSEEN else f"On {domain}, its weakest domain,"
    return f"{text} {place} it differs from the base by {shown(own['to_base'][domain])}."


def shown(found: Sequence[float]) -> str:
    mean, low, high = Difference(*found)
    return f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"


def table(figures: Mapping[str, Any]) -> str:
    """The arms, best first, as a table of Markdown."""
    domains = figures["domains"]
    head = ["", "site", "level", "gate", "k", "balance", *(f"{domain}" for domain in domains), "to the base", "weakest"]
    head += ["least load", "active", "tokens/s", "tokens"]
    lines = [head, ["---"] * len(head)]
    for name, arm in sorted(figures["arms"].items(), key=lambda item: item[1]["nats"][ALL]):
        lines.append(
            [
                *(name, arm["site"], arm["level"], arm["gate"], written(arm["k"]), arm["balance"]),
                *(f"{arm['nats'][domain]:.3f}" for domain in domains),
                shown(arm["to_base"][ALL]),
                f"{arm['weakest']} {arm['to_base'][arm['weakest']][0]:+.3f}",
                written(arm["least_load"], ".2f"),
                written(arm["active"], ","),
                written(arm["tokens_per_second"], ".0f"),
                written(arm["tokens"], ","),
            ]
        )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def written(value: float | None, form: str = "") -> str:
    return "" if value is None else format(value, form)
