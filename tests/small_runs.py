"""A run as a test opens it, beside the verbs: its texts, its models, its task, and which of its parts are stale."""

from pathlib import Path

from moesaic.recipe import Recipe
from moesaic.runs.directory import RunDir
from moesaic.runs.jobs import Jobs, Report
from moesaic.runs.progress import Progress, Silent
from moesaic.stages.verbs import Bench
from moesaic.tasks import Address, Run, open_run


class Told(Silent):
    """A Progress that remembers notes and warnings."""

    def __init__(self) -> None:
        self.notes, self.warnings = list[str](), list[str]()

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def opened(recipe: Recipe, root: Path) -> Run:
    """The run of a recipe in a folder; nothing is read yet."""
    return open_run(Address(RunDir(recipe, root)))


def bench_of(run: Run, told: Progress | None = None) -> Bench:
    """The parts of a run, made in this process."""
    told = told or Silent()
    return Bench(run, told, Jobs(1, told))


def stale(run: Run, told: Progress | None = None) -> set[str]:
    """The names of the experts, controls and routers that the run would make anew."""
    parts = bench_of(run, told).parts
    return {
        part.name for stage in ("experts", "router") for part in parts[stage] if not part.finished(told or Silent())
    }


def silent() -> Report:
    """A report that nobody hears."""
    return Jobs(1, Silent()).report("test")
