"""The reports of stages while they work. `cli/` shows them; a notebook may ignore them.

Knows nothing about how they are shown.
"""

import warnings
from typing import Any, Protocol, runtime_checkable

from moesaic.errors import MoesaicWarning


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
