"""The parts of a run as a graph, and the one way to make them: finished ones are skipped, changed ones made anew.

Knows no part by name: bases, experts, routers, mixtures, evaluations and reports are all parts.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from moesaic.errors import MoesaicError, RecipeError
from moesaic.runs.checkpoints import refuse_changed
from moesaic.runs.directory import RunDir
from moesaic.runs.jobs import Jobs, Report
from moesaic.runs.progress import Progress

Work = Callable[[Report], Any]
"""A piece of work that can be sent to another process."""


class Part(ABC):
    """Something that a run publishes. Each subclass is final: one kind of part.

    `name`: as progress and the command line call the part; `stage`: the word of its kind in its key.
    """

    name: str
    stage: str

    def __init__(self, run: RunDir):
        self.run = run

    @property
    @abstractmethod
    def at(self) -> Path:
        """Where the part is published."""

    @property
    def steps(self) -> int:
        """How long the part takes, in steps: of parts that are made side by side the longest begins first."""
        return 0

    def needs(self) -> tuple[Path, ...]:
        """Where the parts lie that this one is made from."""
        return ()

    @abstractmethod
    def inputs(self) -> dict[str, Any]:
        """Everything beside the seed that the part depends on, as plain data."""

    def settings(self) -> dict[str, Any]:
        """Everything beside the seed that a half-done training of the part depends on."""
        return self.inputs()

    def work(self) -> Work | None:
        """The work that makes the part in any process; None: `make` does it in this one."""
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

    def finished(self, told: Progress) -> bool:
        """Whether a sound version made from the same inputs exists."""
        return self.run.finished(self.at, self.key, told)

    def missing(self) -> MoesaicError:
        """The error for whoever needs the part before any version of it was made."""
        return RecipeError(f"there is no {self.name} yet", path=self.at)

    def require(self) -> None:
        """Refuse to go on without some version of the part."""
        if not self.at.exists():
            raise self.missing()

    def require_needs(self, needed: Sequence["Part"], told: Progress) -> None:
        """Refuse to make the part without the parts that it needs and that are not made beside it."""
        for part in needed:
            part.require()


Graph = Mapping[Path, Part]
"""The parts of a run by where they are published."""


def graph_of(parts: Iterable[Part]) -> Graph:
    """The graph of these parts, in their order."""
    return {part.at: part for part in parts}


def ensure(graph: Graph, wanted: Sequence[Part], told: Progress, jobs: Jobs) -> None:
    """Make those of the wanted parts that are not finished; what they need beside them must exist.

    Parts that do not need each other are made side by side.
    """
    for wave in waves(wanted):
        pending = []
        for part in wave:
            part.require_needs([graph[at] for at in part.needs() if at in graph and graph[at] not in wanted], told)
            if part.finished(told):
                part.run.forget(part.at)
                told.note(f"{part.name}: finished, skipped")
            else:
                refuse_changed(part.run, part.at, part.settings, told.warn)
                pending.append(part)
        make(pending, told, jobs)


def make(pending: Sequence[Part], told: Progress, jobs: Jobs) -> None:
    """Make parts that do not need each other."""
    groups: dict[Any, list[Part]] = {}
    for part in pending:
        groups.setdefault(part.together(), []).append(part)
    for together, parts in groups.items():
        if together:
            together(parts, told, jobs)
            continue
        longest = sorted(parts, key=lambda part: -part.steps)
        sent = {part.name: work for part in longest if (work := part.work())}
        for part in parts:
            if part.name not in sent:
                part.make(jobs.report(part.name))
        jobs.run(sent)


def waves(wanted: Sequence[Part]) -> Iterator[list[Part]]:
    """The parts in waves: a part comes after those of the wanted that it needs, and as early as that allows."""
    left, needs = list(wanted), {part.at: set(part.needs()) for part in wanted}
    while left:
        waiting = {part.at for part in left}
        ready = [part for part in left if not needs[part.at] & waiting]
        if not ready:
            raise ValueError(f"parts that need each other: {', '.join(part.name for part in left)}")
        yield ready
        left = [part for part in left if part not in ready]
