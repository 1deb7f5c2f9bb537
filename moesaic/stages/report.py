"""The report as a part of a run: always written anew, as it takes no time.

Knows nothing about pages.
"""

from pathlib import Path
from typing import Any

from moesaic.report import write_report
from moesaic.runs.directory import RunDir
from moesaic.runs.part import Part
from moesaic.runs.progress import Progress


class ReportPart(Part):
    """The page of a run."""

    name = stage = "report"

    def __init__(self, run: RunDir):
        super().__init__(run)

    @property
    def at(self) -> Path:
        return self.run.root / "report" / "index.html"

    def needs(self) -> tuple[Path, ...]:
        return (self.run.evaluation_at,)

    def inputs(self) -> dict[str, Any]:
        return {}

    def finished(self, told: Progress) -> bool:
        return False

    def together(self) -> Any:
        return write


def write(parts: Any, told: Progress, jobs: Any) -> None:
    """Write the page of a run."""
    (part,) = parts
    told.note(f"report: {write_report(part.run.root)}")
