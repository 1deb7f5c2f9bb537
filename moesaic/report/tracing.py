"""A routing trace as a section of a report: summary, confidence of the router, and corrections.

Knows nothing about the format of a trace: see `generate.trace`.
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
    """Content of the section. `wrong`: decisions with another name as correction; `more`: number of others."""

    summary: dict[str, Any]
    figure: Figures
    chart: Markup | None
    wrong: "list[Decision]"
    more: int


def told_of(path: Path) -> Told:
    """Read a trace; raises DataError with the line of a row that is no decision."""
    from moesaic.generate.trace import read_trace, summary

    decisions = list(read_trace(path))
    found = summary(decisions)
    sure = [one.confidence for one in decisions if one.confidence is not None]
    wrong = [one for one in decisions if not one.forced and one.correction not in (None, one.chosen)]
    chart = histogram(binned(sure), "confidence", "trace") if sure else None
    return Told(found, Figures(found, "trace"), chart, wrong[:MOST], len(wrong[MOST:]))


def binned(shares: list[float]) -> list[dict[str, Any]]:
    counts = [0] * BINS
    for share in shares:
        counts[min(int(share * BINS), BINS - 1)] += 1
    return [{"from": i / BINS, "below": (i + 1) / BINS, "rows": count} for i, count in enumerate(counts)]
