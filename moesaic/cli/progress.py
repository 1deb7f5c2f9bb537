"""Progress of a run on stderr: bars on a terminal, otherwise occasional lines.

Knows nothing about stages or tasks.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Column
from rich.text import Text

from moesaic.runs.progress import Progress, Silent

PATIENCE = 10.0  # seconds after which a task is logged on a line


@contextmanager
def shown(quiet: bool = False, console: Console | None = None) -> Iterator[Progress]:
    """Show progress during a `with` block, as bars or lines; `quiet` shows only warnings."""
    console = console or Console(stderr=True, highlight=False, markup=False, emoji=False)
    if quiet:
        yield Quiet(console)
    elif console.is_terminal:
        bars = Bars(console)
        with bars.display:
            yield bars
    else:
        yield Lines(console)


class Quiet(Silent):
    """Shows nothing but warnings."""

    def __init__(self, console: Console):
        self.console = console

    def warn(self, text: str) -> None:
        warn(self.console, text)


def warn(console: Console, text: str) -> None:
    console.print(f"warning: {text}", style="bold yellow", soft_wrap=True)


@dataclass
class Running:
    """A task in progress: its start, the time of its last line, and its last measurements."""

    steps: int
    since: float
    logged: float
    row: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def from_now(steps: int) -> "Running":
        now = time.monotonic()
        return Running(steps, now, now)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.since

    @property
    def memorable(self) -> bool:
        """Whether a line reports the end: after a training, and after a long task."""
        return "loss" in self.row or self.seconds >= PATIENCE


class Bars:
    """A bar for each running task; memorable ones leave a line above."""

    def __init__(self, console: Console):
        self.console, self.running = console, dict[str, tuple[TaskID, Running]]()
        # Columns keep their width, so that bars do not jump.
        room = Column(min_width=16, max_width=max(16, console.width // 5), no_wrap=True)
        columns: list[ProgressColumn] = [
            TextColumn("{task.description}", markup=False, table_column=room),
            BarColumn(None),
            MofNCompleteColumn(),
            *([Figures()] if console.width >= 80 else []),
            TimeRemainingColumn(compact=True),
        ]
        # Transient: bars disappear before an error is printed.
        self.display = RichProgress(*columns, console=console, transient=True, expand=True)

    def note(self, text: str) -> None:
        self.console.print(text, style="dim")

    def warn(self, text: str) -> None:
        warn(self.console, text)

    def begin(self, task: str, steps: int) -> None:
        self.running[task] = self.display.add_task(task, total=steps, row={}), Running.from_now(steps)

    def row(self, task: str, row: dict[str, Any]) -> None:
        bar, running = self.running[task]
        running.row = {**running.row, **row}
        self.display.update(bar, completed=row["step"], row=running.row)

    def end(self, task: str, text: str) -> None:
        bar, running = self.running.pop(task)
        self.display.remove_task(bar)
        if running.memorable:
            tick = Text("✓ ", style="green")
            self.console.print(tick.append(f"{task}  {text}  {running.seconds:.1f} s", style="default"))


class Figures(ProgressColumn):
    """Column with the last measurements of a task."""

    max_refresh = 0.2

    def __init__(self) -> None:
        super().__init__(Column(min_width=len("loss 1.234   1.23k tok/s  val 1.234"), no_wrap=True))

    def render(self, task: Task) -> Text:
        return Text("  ".join(figures(task.fields["row"])))


class Lines:
    """A line every ten seconds of a task, and at the end of a memorable one."""

    def __init__(self, console: Console):
        self.console, self.running = console, dict[str, Running]()

    def note(self, text: str) -> None:
        self.say(text)

    def warn(self, text: str) -> None:
        warn(self.console, text)

    def begin(self, task: str, steps: int) -> None:
        self.running[task] = Running.from_now(steps)

    def row(self, task: str, row: dict[str, Any]) -> None:
        running = self.running[task]
        running.row = {**running.row, **row}
        if time.monotonic() - running.logged >= PATIENCE:
            running.logged = time.monotonic()
            self.say("  ".join([f"{task} {row['step']}/{running.steps}", *figures(running.row)]))

    def end(self, task: str, text: str) -> None:
        running = self.running.pop(task)
        if running.memorable:
            self.say(f"{task}  {text}  {running.seconds:.1f} s")

    def say(self, text: str) -> None:
        print(text, file=self.console.file, flush=True)


def figures(row: Mapping[str, Any]) -> Iterator[str]:
    """The figures of a row to print; occasional ones last, so that the others do not move."""
    if "loss" in row:
        yield f"loss {row['loss']:.3f}"
    for key, unit in (("rate", "tok/s"), ("row_rate", "rows/s")):
        if key in row:
            yield f"{amount(row[key]):>5} {unit}"
    for key, short in (("validation", "val"), ("score", "score")):
        if key in row:
            yield f"{short} {row[key]:.3f}"


def amount(value: float) -> str:
    """Format a number in five characters: 873, 12.3k, 4.56M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.0f}"
