"""The one exception family: what went wrong, where, what was expected, what to do; and the one kind of warning.

Knows nothing about terminals or exit: only `cli/` prints these and turns `exit_code` into the process's status.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from os import PathLike
from typing import Any, TypeVar

E = TypeVar("E", bound="MoesaicError")


class MoesaicError(Exception):
    """An error that a user can act on; `str(error)` is one line.

    `path`, `line` (physical, from 1) and `field` say where; `expected` and `got` what differed; `hint` what to do.
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        path: str | PathLike[str] | None = None,
        line: int | None = None,
        field: str | None = None,
        expected: Any = None,
        got: Any = None,
        hint: str | None = None,
    ):
        super().__init__(what)
        self.what, self.path, self.line, self.field = what, path, line, field
        self.expected, self.got, self.hint = expected, got, hint

    def at(
        self: E,
        *,
        path: str | PathLike[str] | None = None,
        field: str | None = None,
        line: int | None = None,
        hint: str | None = None,
    ) -> E:
        """The same error, with what it does not say yet filled in. A line belongs to its path, and comes with it."""
        self.path = self.path or path
        self.line = self.line or (line if self.path == path else None)
        self.field, self.hint = self.field or field, self.hint or hint
        return self

    def __str__(self) -> str:
        where = "" if self.path is None else f"{self.path}:{self.line}: " if self.line else f"{self.path}: "
        field = f"{clipped(self.field, 300)}: " if self.field else ""
        detail = "" if self.expected is None else f"; expected {self.expected}"
        detail += "" if self.got is None else f"; got {clipped(self.got)}" if detail else f": {clipped(self.got)}"
        hint = f"; {self.hint}" if self.hint else ""
        return printable(" ".join(f"{where}{field}{clipped(self.what, 500)}{detail}{hint}".split()))


class RecipeError(MoesaicError):
    """The recipe or the command line asks for something that does not exist or is not allowed."""

    exit_code = 2


class DataError(MoesaicError):
    """A row, or a file of rows, cannot be used."""

    exit_code = 3


class WeightsError(MoesaicError):
    """A model file is missing, damaged or hostile."""

    exit_code = 4


class CompatibilityError(MoesaicError):
    """Two good artefacts do not fit each other: another base, other shapes, other names."""

    exit_code = 5


class StorageError(MoesaicError):
    """The disk is full, read-only or failing."""

    exit_code = 6


class NonFiniteError(MoesaicError):
    """Training met NaN or infinity; nothing of that step is kept."""

    exit_code = 7


class MemoryLimitError(MoesaicError):
    """There is not as much memory as this takes."""

    exit_code = 8


class MoesaicWarning(UserWarning):
    """Something odd that the work survives, such as what a model's file asks for and does not get."""


class GatesError(MoesaicError, ValueError):
    """A routed layer was called without gates, or with the gates of another batch."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM ended the work. Not one of the family, as it is no error: `except Exception` lets it pass.

    Its argument is the signal's number; the exit code is that of a shell, 130 or 143.
    """

    @property
    def exit_code(self) -> int:
        return 128 + self.args[0]


@contextmanager
def memory_for(what: str, hint: str) -> Iterator[None]:
    """Raises MemoryLimitError, with the `hint` which knob to turn, where Python or torch finds no memory for `what`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        if not isinstance(error, MemoryError) and not any(phrase in text for phrase in _NO_MEMORY):
            raise
        asked = re.search(r"allocate (\d+ bytes|[\d.]+ [KMGT]iB)", text)
        raise MemoryLimitError(f"no memory for {what}", got=asked and f"a request of {asked[1]}", hint=hint) from error


_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "Cannot allocate memory")
"""What torch says on a CPU, on Windows, on an accelerator, and the system to any of them."""


def clipped(value: Any, limit: int = 120) -> str:
    """`value` as it may be echoed in a message: one line, at most `limit` characters."""
    text = " ".join((value if isinstance(value, str) else repr(value)).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def printable(text: str) -> str:
    """`text` with what a terminal would obey or could not show spelled out: escapes, marks of direction, surrogates."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def nearest(name: str, known: list[str]) -> str | None:
    """A hint naming the known word closest to a misspelt one, or None."""
    close = get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else None
