"""The one exception family: what failed, where, what was expected, what to do. And the one kind of warning.

Knows nothing about terminals: only `cli/` prints errors and turns `exit_code` into the process's status.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from operator import index
from os import PathLike
from typing import Any, TypeVar

E = TypeVar("E", bound="MoesaicError")
At = str | PathLike[str]


class MoesaicError(Exception):
    """An error that a user can act on; `str(error)` is one line.

    `path`, `line` (physical, from 1) and `field` locate it; `expected` and `got` say what differs; `hint` what to do.
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        path: At | None = None,
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
        self: E, *, path: At | None = None, field: str | None = None, line: int | None = None, hint: str | None = None
    ) -> E:
        """Fill in what this error lacks, and return it. A line is filled in only together with its path."""
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
    """The recipe or the command line asks for something unknown or not allowed."""

    exit_code = 2


class DataError(MoesaicError):
    """A row, or a file of rows, cannot be used."""

    exit_code = 3


class WeightsError(MoesaicError):
    """A model file is missing, damaged or hostile."""

    exit_code = 4


class CompatibilityError(MoesaicError):
    """Two valid artefacts do not fit each other: their bases, shapes or names differ."""

    exit_code = 5


class StorageError(MoesaicError):
    """The disk is full, read-only or failing."""

    exit_code = 6


class NonFiniteError(MoesaicError):
    """Training met NaN or infinity; the step changed nothing."""

    exit_code = 7


class MemoryLimitError(MoesaicError):
    """The work takes more memory than there is."""

    exit_code = 8


class RanksError(MoesaicError):
    """Another process of a distributed training was lost."""

    exit_code = 9


class MoesaicWarning(UserWarning):
    """A problem that does not stop the work, such as a request in a model's file that is ignored."""


class GatesError(MoesaicError, ValueError):
    """A routed layer was called without gates, or with the gates of another batch."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, SIGTERM or SIGHUP ended the work. No error, so `except Exception` does not catch it.

    The argument is the signal's number; the exit code is that of a shell: 130, 143 or 129.
    """

    @property
    def exit_code(self) -> int:
        return 128 + self.args[0]


@contextmanager
def memory_for(what: str, hint: str) -> Iterator[None]:
    """Raise MemoryLimitError with `hint` where Python or torch finds no memory for `what`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        if not isinstance(error, MemoryError) and not any(phrase in text for phrase in _NO_MEMORY):
            raise
        asked = re.search(r"allocate (\d+ bytes|[\d.]+ [KMGT]iB)", text)
        raise MemoryLimitError(f"no memory for {what}", got=asked and f"a request of {asked[1]}", hint=hint) from error


_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "Cannot allocate memory")
"""The messages of torch on a CPU, on Windows and on an accelerator, and of the system."""


def whole(value: Any, field: str, expected: str = "a whole number") -> int:
    """A caller's whole number; RecipeError names the argument for anything else, such as 3.0 or "3"."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise RecipeError("wrong type", field=field, expected=expected, got=f"{type(value).__name__} {value!r}")
    return index(value)


def number(value: Any, field: str) -> float:
    """A caller's number; RecipeError names the argument for anything else."""
    if isinstance(value, bool | str | bytes) or not hasattr(value, "__float__"):
        raise RecipeError("wrong type", field=field, expected="a number", got=f"{type(value).__name__} {value!r}")
    return float(value)


def clipped(value: Any, limit: int = 120) -> str:
    """`value` as one line of at most `limit` characters, for messages."""
    text = " ".join((value if isinstance(value, str) else repr(value)).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def printable(text: str) -> str:
    """`text` with everything spelled out that a terminal would obey or cannot show: escapes, surrogates."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def nearest(name: str, known: list[str]) -> str | None:
    """A hint that names the known word closest to a misspelt one, or None."""
    close = get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else None
