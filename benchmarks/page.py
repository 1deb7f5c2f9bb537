"""A page of `benchmarks/results`: its text, and the machine and the code that its figures come from.

Knows nothing about how a figure is computed.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moesaic.runs.machine import machine

RESULTS = Path(__file__).parent / "results"
RECIPES = Path(__file__).parents[1] / "recipes"


@dataclass(frozen=True)
class Options:
    """Where runs are made or found finished, where models and texts of other people lie, and whether sizes are small.

    `quick`: everything is computed, but at sizes that say nothing about speed or quality. `next`: further steps of a
    page, which it makes only where they are named.
    """

    runs: Path
    shared: Path
    quick: bool = False
    next: tuple[str, ...] = ()


@dataclass(frozen=True)
class Page:
    """A page without its heading. `machines`: what each run was made with; None of a run that does not record it."""

    text: str
    machines: Mapping[str, Mapping[str, Any] | None]

    def written(self, name: str) -> str:
        """The page with its name, the command that makes it again, and the machines of its figures."""
        again = f"Again: `python -m benchmarks {name}`"
        return f"# {name}\n\n{again}\n\n{self.stamp()}\n\n{self.text}"

    def stamp(self) -> str:
        """One line where all figures come from one machine and one commit; else one for each run."""
        stamps = {run: stamped(of) for run, of in self.machines.items()}
        if len(set(stamps.values())) == 1:
            return f"Computed: {next(iter(stamps.values()))}"
        return "\n".join(f"- {run}: {stamp}" for run, stamp in stamps.items())


def stamped(of: Mapping[str, Any] | None) -> str:
    """Date, commit, processor, instructions and threads in words."""
    if of is None:
        return "on a machine that the run does not record"
    instructions = of["instructions"] or "instructions unknown"
    commit = f"commit {of['commit']}" if of["commit"] else f"moesaic {of['version']}"
    return f"{of['date']}, {commit}, {of['processor']}, {instructions}, threads: {of['threads']}, torch {of['torch']}"


def measured_here(text: str) -> Page:
    """A page whose figures this process has just computed."""
    return Page(text, {"": machine()})


@dataclass(frozen=True)
class Bar:
    """A claim: what is measured, what it should be, what it is, and whether that is enough."""

    what: str
    asked: str
    found: str
    reached: bool


def tabulated(bars: Iterable[Bar]) -> str:
    """A table of bars, each reached or not."""
    lines = ["| bar | asked | found | |", "|---|---|---|---|"]
    told = {True: "reached", False: "**not reached**"}
    return "\n".join([*lines, *(f"| {one.what} | {one.asked} | {one.found} | {told[one.reached]} |" for one in bars)])


@dataclass(frozen=True)
class Section:
    """A part of a page. `text`: how it was measured, and figures without a bar."""

    title: str
    text: str
    bars: list[Bar]

    def __str__(self) -> str:
        bars = f"\n\n{tabulated(self.bars)}" if self.bars else ""
        return f"## {self.title}\n\n{self.text}{bars}\n"


@dataclass(frozen=True)
class Source:
    """What makes a page. `texts`: it needs the folder of models and texts, `Options.shared`."""

    make: Callable[[Options], Page]
    texts: bool = field(default=False, kw_only=True)
