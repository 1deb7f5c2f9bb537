"""The report as a part of a run: always written anew, which takes no time.

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

    run: RunDir
    name = stage = "report"
    is_folder = False

    def __init__(self, run: RunDir):
        super().__init__(run, run.root / "report" / "index.html")

    def needs(self) -> tuple[Path, ...]:
        return (self.run.evaluation_at,)

    def inputs(self) -> dict[str, Any]:
        return {}

    def made_from(self, progress: Progress) -> str | None:
        return None

    def together(self) -> Any:
        return write


def write(parts: Any, progress: Progress, jobs: Any) -> None:
    (part,) = parts
    progress.note(f"report: {write_report(part.run.root)}")
