"""Training logs as panels of a page: one for every part with all its learning rates, two for all routers.

Knows nothing about how a part is trained: rows have a step, a loss, and sometimes a validation figure.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from markupsafe import Markup

from moesaic.report.charts import Curve, curves, dash_of, smoothed
from moesaic.report.reading import Logs, Rows

OWN, RIVALS = "router", "controls/routers/"


@dataclass(frozen=True)
class Line:
    """A line of a panel's legend: colour, dashes, and the best validation figure."""

    label: str
    number: int
    dash: int
    reached: float | None
    best: bool


@dataclass(frozen=True)
class Panel:
    """A chart with its legend; `window`: the number of steps in its running mean."""

    title: str
    chart: Markup
    lines: list[Line]
    measure: str
    window: int


def panels(logs: Logs, experts: list[str]) -> list[Panel]:
    """Panels of the base, the experts in their order, the joint controls, and the routers."""
    order = ["base", *(f"experts/{name}" for name in experts), "controls/joint", "controls/joint_wide"]
    routers = {place: rates for place, rates in logs.items() if place == OWN or place.startswith(RIVALS)}
    parts = sorted(logs.keys() - routers.keys(), key=lambda at: (order.index(at) if at in order else len(order), at))
    return [*(_part(place, logs[place]) for place in parts), *_routers(routers)]


def grids(logs: Logs) -> dict[tuple[str, ...], list[str]]:
    """The learning rates that were tried -> the parts that chose among them; routers have rates of their own kind."""
    found: dict[tuple[str, ...], list[str]] = {}
    for place, rates in logs.items():
        if place != OWN and not place.startswith(RIVALS):
            found.setdefault(tuple(rates), []).append(place.rpartition("/")[2])
    return found


def _part(place: str, rates: dict[str, Rows]) -> Panel:
    lines, reached, scores, window = [], list[float | None](), list[float | None](), 1
    for number, rows in enumerate(rates.values()):
        loss, window = _smooth(rows, "loss")
        marks = [(row["step"], row["validation"]) for row in rows if row.get("validation") is not None]
        scores.append(max((row["score"] for row in rows if "score" in row), default=None))
        lines.append(Curve([row["step"] for row in rows if "loss" in row], loss, marks, number))
        reached.append(min((nats for _, nats in marks), default=None))
    if any(score is not None for score in scores):  # an expert that classifies: its loss has another scale
        reached, choose, words, measure = scores, max, "nats per row", "score"
    else:
        choose, words, measure = min, "nats per token", "validation"
    best = choose((value for value in reached if value is not None), default=None)
    legend = [
        Line(f"rate {rate}", number, dash_of(number), nats, nats is not None and nats == best)
        for number, (rate, nats) in enumerate(zip(rates, reached, strict=True))
    ]
    return Panel(place.rpartition("/")[2], curves(lines, words, place), legend, measure, window)


def _routers(places: dict[str, dict[str, Rows]]) -> Iterator[Panel]:
    """Draw the losses of all routers in one chart, their validation scores in another."""
    logs = {place.removeprefix(RIVALS): rows for place, rates in places.items() for rows in rates.values()}
    if not logs:
        return
    ordered = dict(sorted(logs.items(), key=lambda item: item[0] != OWN))
    window, losses, scores, legend = 1, list[Curve](), list[Curve](), list[Line]()
    best = max((row["score"] for rows in ordered.values() for row in rows if "score" in row), default=None)
    for number, (label, rows) in enumerate(ordered.items()):
        loss, window = _smooth(rows, "loss")
        losses.append(Curve([row["step"] for row in rows if "loss" in row], loss, (), number))
        scored = [row for row in rows if "score" in row]
        scores.append(Curve([row["step"] for row in scored], [row["score"] for row in scored], (), number))
        reached = max((row["score"] for row in scored), default=None)
        legend.append(Line(label, number, dash_of(number), reached, reached is not None and reached == best))
    yield Panel("routers: loss", curves(losses, "loss", "router-loss"), legend, "", window)
    if best is not None:
        yield Panel("routers: validation", curves(scores, "macro F1", "router-score"), legend, "macro F1", 1)


def _smooth(rows: Rows, key: str) -> tuple[list[float], int]:
    return smoothed([row[key] for row in rows if key in row])
