"""The parts of a run as a graph, and the one way to make them: finished ones are skipped, changed ones made anew.

Knows no part by name: bases, experts, routers, mixtures, evaluations and reports are all parts.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from moesaic.errors import MoesaicError, RecipeError
from moesaic.files import MANIFEST, disk, read_manifest
from moesaic.files.publishing import require_published
from moesaic.runs.checkpoints import refuse_changed
from moesaic.runs.directory import PartsDir
from moesaic.runs.jobs import Jobs, Report
from moesaic.runs.progress import Progress

CHANGED = "made anew, because its settings or inputs changed (name=OTHER keeps the old run)"

Work = Callable[[Report], Any]
"""A piece of work that can be sent to another process."""


class Part(ABC):
    """Something that a run publishes at the path `at`. Each subclass is final: one kind of part.

    `name`: as progress and the command line call the part; `stage`: the word of its kind in its key; `steps`: its
    length, as the longest of the parts that are made side by side starts first.
    """

    name: str
    stage: str
    is_folder = True
    """Whether the part is a folder that is published, not a file."""

    def __init__(self, run: PartsDir, at: Path):
        self.run, self.at = run, at

    @property
    def steps(self) -> int:
        return 0

    def needs(self) -> tuple[Path, ...]:
        """The paths of the parts and folders that this one is made from."""
        return ()

    @abstractmethod
    def inputs(self) -> dict[str, Any]:
        """Everything that the part depends on, except the seed, as plain data."""

    def settings(self) -> dict[str, Any]:
        """Everything that a half-done training of the part depends on, except the seed."""
        return self.inputs()

    def work(self) -> Work | None:
        """The work that makes the part in any process; None: `make` makes it in this one."""
        return None

    def make(self, report: Report) -> None:
        """Make and publish the part in this process."""
        raise NotImplementedError(self.name)

    def together(self) -> Callable[[Sequence[Any], Progress, Jobs], None] | None:
        """The function that makes several such parts from what they read together; None: each is made by itself."""
        return None

    @cached_property
    def key(self) -> str:
        """The hash of everything that the part depends on."""
        return self.run.key(self.stage, **self.inputs())

    def made_from(self, progress: Progress) -> str | None:
        """The key of the sound version that exists; None without one. A damaged version is reported."""
        return self.run.made_from(self.at, read_manifest, progress) if (self.at / MANIFEST).is_file() else None

    def finished(self, progress: Progress) -> bool:
        """Tell whether a sound version made from the same inputs exists."""
        return (found := self.made_from(progress)) is not None and found == self.key

    def losses(self) -> Iterator[str]:
        """Describe each log of a finished part that was deleted or cut since."""
        return self.run.lost_logs(self.at) if self.is_folder else iter(())

    def missing(self) -> MoesaicError:
        """The error for a need of the part before any version of it was made."""
        return RecipeError(f"there is no {self.name} yet", path=self.at)

    def require_needs(self, needed: Sequence["Part"], progress: Progress) -> None:
        """Refuse to make the part without some version of each part that it needs."""
        for part in needed:
            if not part.at.exists():
                raise part.missing()


Graph = Mapping[Path, Part]
"""The parts of a run by their paths, in their order."""


def graph_of(parts: Iterable[Part]) -> Graph:
    return {part.at: part for part in parts}


def ensure(graph: Graph, wanted: Sequence[Part], progress: Progress, jobs: Jobs) -> None:
    """Make those of the wanted parts that are not finished; everything else that they need must exist.

    Parts that do not need each other are made side by side.
    """
    made_here = {part.at for part in wanted}
    for wave in waves(wanted):
        pending = []
        for part in wave:
            others = [at for at in part.needs() if at not in made_here]
            part.require_needs([graph[at] for at in others if at in graph], progress)
            for at in others:
                if at not in graph and not at.exists():
                    what = f"'{part.name}' needs a folder that does not exist, and no part of the run makes it"
                    raise RecipeError(what, path=at)
            found = part.made_from(progress)
            if found is not None and found == part.key:
                part.run.forget(part.at)
                progress.note(f"{part.name}: finished, skipped")
                for loss in part.losses():
                    progress.warn(f"{part.name}: {loss}; its curve is lost, unless you remove {part.at} and run again")
            else:
                refuse_changed(part.run, part.at, part.settings, progress.warn)
                if part.is_folder:
                    with disk.errors(part.at):
                        require_published(part.at)
                if found is not None:
                    refuse_orphans(graph, part)
                    progress.note(f"{part.name}: {CHANGED}")
                pending.append(part)
        make(pending, progress, jobs)


def refuse_orphans(graph: Graph, changed: Part) -> None:
    """Refuse to make a part anew while a half-done training needs the version that exists."""
    for part in graph.values():
        if changed.at in part.needs() and any(part.run.states_at(part.at).rglob(MANIFEST)):
            what = f"'{part.name}' is half-done, and the settings or inputs of what it needs have changed"
            hint = f"undo the change to continue it, or give --restart {part.run.title(part.at).name} to begin it anew"
            raise RecipeError(what, path=part.run.states_at(part.at), field=changed.name, hint=hint)


def make(pending: Sequence[Part], progress: Progress, jobs: Jobs) -> None:
    """Make parts that do not need each other."""
    groups: dict[Any, list[Part]] = {}
    for part in pending:
        groups.setdefault(part.together(), []).append(part)
    for together, parts in groups.items():
        if together:
            together(parts, progress, jobs)
            continue
        longest = sorted(parts, key=lambda part: -part.steps)
        sent = {part.name: work for part in longest if (work := part.work())}
        for part in parts:
            if part.name not in sent:
                part.make(jobs.report(part.name))
        jobs.run(sent)


def waves(wanted: Sequence[Part]) -> Iterator[list[Part]]:
    """Sort parts into waves: a part comes after those of the wanted that it needs, and as early as that allows."""
    left = {part.at: part for part in wanted}
    needs = {part.at: set(part.needs()) for part in wanted}
    while left:
        ready = [part for at, part in left.items() if not needs[at] & left.keys()]
        if not ready:
            raise ValueError(f"parts that need each other: {', '.join(part.name for part in left.values())}")
        yield ready
        for part in ready:
            del left[part.at]
