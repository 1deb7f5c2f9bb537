"""The reports of stages while they work. `cli/` shows them; a notebook may ignore them.

Knows nothing about how they are shown.
"""

import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar, runtime_checkable

from moesaic.errors import MoesaicWarning

T = TypeVar("T")

EVERY = 0.5
"""Seconds between the reports of an iteration, the first of which makes it a task."""

Tell = Callable[[str, str, Any], None]
"""Called with the name of a method of Progress, the name of a task, and its steps, its row or its text."""


@runtime_checkable
class Progress(Protocol):
    """Listens to a run. All calls come from one process and one thread."""

    def note(self, text: str) -> None:
        """Report something worth a line: a skipped stage, dropped rows, the path of a file."""

    def warn(self, text: str) -> None:
        """Report a problem that the run survives and that the user should see."""

    def begin(self, task: str, steps: int) -> None:
        """Start a task of that many steps."""

    def row(self, task: str, row: dict[str, Any]) -> None:
        """Report a step of a task: `step` from 1, and the values measured (`loss`, `rate`, `validation`, ...)."""

    def end(self, task: str, text: str) -> None:
        """End a task, with its outcome in words."""


class Silent:
    """Shows nothing but warnings, as Python's."""

    def note(self, text: str) -> None: ...

    def warn(self, text: str) -> None:
        warnings.warn(text, MoesaicWarning, stacklevel=2)

    def begin(self, task: str, steps: int) -> None: ...
    def row(self, task: str, row: dict[str, Any]) -> None: ...
    def end(self, task: str, text: str) -> None: ...


def watched(
    items: Iterable[T], steps: float, task: str, tell: Tell, size: Callable[[T], float] = lambda item: 1
) -> Iterator[T]:
    """The same items; an iteration that takes its time is reported as a task of so many steps.

    `size`: the steps that an item takes.
    """
    begun, done, last = False, 0.0, time.monotonic()
    try:
        for item in items:
            yield item
            done += size(item)
            if (now := time.monotonic()) - last >= EVERY:
                last = now
                if not begun:
                    tell("begin", task, int(steps))
                    begun = True
                tell("row", task, {"step": int(min(done, steps))})
    finally:  # the caller may stop early
        if begun:
            tell("end", task, "done")
