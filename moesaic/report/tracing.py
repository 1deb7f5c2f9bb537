"""A routing trace as a section of a report: its summary, how sure the router was, and where somebody knew better.

Knows nothing about how a trace is written or read: see `generate.trace`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from moesaic.report.charts import histogram
from moesaic.report.figures import Figures

if TYPE_CHECKING:
    from moesaic.generate.trace import Decision

BINS, MOST = 10, 20


@dataclass(frozen=True)
class Told:
    """What the section shows. `wrong`: decisions corrected to another name; of `more` of them only the number."""

    summary: dict[str, Any]
    figure: Figures
    chart: Markup | None
    wrong: "list[Decision]"
    more: int


def told_of(path: Path) -> Told:
    """Read a trace; a row that is no decision raises DataError with its line."""
    from moesaic.generate.trace import read_trace, summary

    decisions = list(read_trace(path))
    found = summary(decisions)
    sure = [one.confidence for one in decisions if one.confidence is not None]
    wrong = [one for one in decisions if not one.forced and one.correction not in (None, one.chosen)]
    chart = histogram(binned(sure), "confidence", "trace") if sure else None
    return Told(found, Figures(found, "trace"), chart, wrong[:MOST], len(wrong[MOST:]))


def binned(shares: list[float]) -> list[dict[str, Any]]:
    """How many of the shares are in each of ten bins of equal width; 1 belongs to the last."""
    counts = [0] * BINS
    for share in shares:
        counts[min(int(share * BINS), BINS - 1)] += 1
    return [{"from": i / BINS, "below": (i + 1) / BINS, "rows": count} for i, count in enumerate(counts)]
