"""The page of a study: its verdict, comparisons, quality against cost, training curves and expert load.

Knows nothing about how arms were trained or compared: every number and sentence comes from study.json.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from moesaic.files import read_json, write_bytes
from moesaic.report.charts import Band, bands, dash_of
from moesaic.report.figures import Figures
from moesaic.report.page import filled_in

STUDY, PAGE = "study.json", "index.html"

COSTS = {
    "parameters": ("parameters", "all parameters"),
    "flops": ("training FLOPs", "active FLOPs of the training"),
    "seconds": ("seconds of the processor", "seconds of the training"),
}
"""Key of a decay's cost -> the label of its axis, and the title of its chart."""


@dataclass(frozen=True)
class Drawn:
    """A chart with its title."""

    title: str
    note: str
    chart: Markup


@dataclass(frozen=True)
class Whisker:
    """A difference and its interval on the axis of all comparisons, in percent of its width."""

    low: float
    mean: float
    high: float


def write_study(folder: Path) -> Path:
    """Write the page beside the study.json of a folder, and return its path."""
    study = read_json(folder / STUDY)
    numbers = {name: number for number, name in enumerate(study["arms"])}
    page = filled_in(
        "study.html",
        folder / STUDY,
        study=study,
        figure=Figures(study),
        arms=[(name, number, dash_of(number)) for name, number in numbers.items()],
        quality=[*quality(study, numbers)],
        training=[*training(study, numbers)],
        loads=[*loads(study)],
        rates=[*rates(study, numbers)],
        costs=[*costs(study, numbers)],
        forest=forest(study),
    )
    path = folder / PAGE
    write_bytes(path, page.encode())
    return path


def forest(study: dict[str, Any]) -> dict[str, Any]:
    """The axis of all differences, and each difference on it; None for those without an interval."""
    ends = [abs(one[key]) for one in study["comparisons"] if "low" in one for key in ("low", "high")]
    far = max(ends, default=0) * 1.05 or 1.0

    def at(value: float) -> float:
        return round(50 + 50 * value / far, 2)

    rows = [
        Whisker(at(one["low"]), at(one["mean"]), at(one["high"])) if "low" in one else None
        for one in study["comparisons"]
    ]
    return {"far": far, "rows": rows}


def quality(study: dict[str, Any], numbers: dict[str, int]) -> Iterator[Drawn]:
    """Bits per byte of the last decay against each cost, one line for each arm over its depths."""
    for key, (axis, title) in COSTS.items():
        lines = [last(arm["depths"], key, numbers[name]) for name, arm in study["arms"].items()]
        note = "one point for each depth, at the last decay"
        yield Drawn(f"Bits per byte against {title}", note, bands(lines, axis, "bits per byte", key, ratios=True))


def last(depths: list[dict[str, Any]], cost: str, number: int) -> Band:
    points = sorted((one["parameters"] if cost == "parameters" else one["decays"][-1][cost], one) for one in depths)
    ends = [one["decays"][-1] for _, one in points]
    low, high = ([end["interval"][side] for end in ends] for side in (0, 1))
    return Band([x for x, _ in points], low, [end["bits"] for end in ends], high, number)


def training(study: dict[str, Any], numbers: dict[str, int]) -> Iterator[Drawn]:
    """The training loss over tokens: a panel for each depth, a band over the seeds for each arm."""
    for depth in study["depths"]:
        lines = [
            Band(*columns(one["curve"]), numbers[name])
            for name, arm in study["arms"].items()
            for one in arm["depths"]
            if one["depth"] == depth
        ]
        chart = bands(lines, "tokens", "nats per token", f"loss-{depth}", dots=False)
        yield Drawn(f"{depth} layers", "running mean; band: all seeds", chart)


def columns(curve: dict[str, list[float]]) -> tuple[list[float], list[float], list[float], list[float]]:
    return curve["tokens"], curve["low"], curve["mean"], curve["high"]


def loads(study: dict[str, Any]) -> Iterator[Drawn]:
    """How uneven the experts of sparse arms were loaded, layer by layer, over the training of the deepest model."""
    for name, arm in study["arms"].items():
        for one in arm["depths"][-1:]:
            if one["load"]:
                lines = [
                    Band(layer["tokens"], layer["worst"], layer["worst"], layer["worst"], number)
                    for number, layer in enumerate(one["load"])
                ]
                chart = bands(lines, "tokens", "load of the busiest expert", f"load-{name}", dots=False)
                note = "tokens of the busiest expert, as a multiple of the mean; one line for each layer, mean of seeds"
                yield Drawn(f"{name}, {one['depth']} layers", note, chart)


def rates(study: dict[str, Any], numbers: dict[str, int]) -> Iterator[Drawn]:
    """Validation loss of every rate that was tried, a panel for each depth that was swept."""
    for depth in dict.fromkeys(sweep["depth"] for sweep in study["sweeps"]):
        lines = list[Band]()
        for sweep in study["sweeps"]:
            if sweep["depth"] == depth:
                tried = [(rate, loss) for rate, loss in sweep["tried"] if loss is not None]
                x, y = ([one[side] for one in tried] for side in (0, 1))
                lines.append(Band(x, y, y, y, numbers[sweep["arm"]]))
        chart = bands(lines, "peak learning rate", "nats per token, validation", f"rates-{depth}", ratios=True)
        yield Drawn(f"{depth} layers", "a smaller and a larger rate than the best one were tried", chart)


def costs(study: dict[str, Any], numbers: dict[str, int]) -> Iterator[Drawn]:
    """Tokens per second and perplexity by depth, one line for each arm."""
    for key, axis, note in (
        ("speed", "tokens per second", "training, one thread, by the time of the processor"),
        ("perplexity", "perplexity", "per token, last decay, unseen texts; interval over seeds and texts"),
    ):
        lines = list[Band]()
        for name, arm in study["arms"].items():
            ends = [one if key == "speed" else one["decays"][-1] for one in arm["depths"]]
            y = [end[key] for end in ends]
            low, high = (
                [end[f"{key}_interval"][side] if f"{key}_interval" in end else end[key] for end in ends]
                for side in (0, 1)
            )
            lines.append(Band([one["depth"] for one in arm["depths"]], low, y, high, numbers[name]))
        yield Drawn(axis.capitalize(), note, bands(lines, "layers", axis, key))
