"""What the stages tell while they work. `cli/` shows it; a notebook may ignore it.

Knows nothing about how it is shown.
"""

import warnings
from typing import Any, Protocol, runtime_checkable

from moesaic.errors import MoesaicWarning


@runtime_checkable
class Progress(Protocol):
    """Listens to a run. All calls come from one process and one thread."""

    def note(self, text: str) -> None:
        """Something worth a line: a stage skipped, rows dropped, where a file lies."""

    def warn(self, text: str) -> None:
        """Something went wrong that the run survives, and that nobody should overlook."""

    def begin(self, task: str, steps: int) -> None:
        """A task of that many steps starts."""

    def row(self, task: str, row: dict[str, Any]) -> None:
        """A step of a task: `step` from 1, and whatever was measured (`loss`, `rate`, `validation`, ...)."""

    def end(self, task: str, text: str) -> None:
        """A task is done; `text` says how it went."""


class Silent:
    """Shows nothing; warnings are Python's."""

    def note(self, text: str) -> None: ...

    def warn(self, text: str) -> None:
        warnings.warn(text, MoesaicWarning, stacklevel=2)

    def begin(self, task: str, steps: int) -> None: ...
    def row(self, task: str, row: dict[str, Any]) -> None: ...
    def end(self, task: str, text: str) -> None: ...
