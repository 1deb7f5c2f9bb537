"""The rows that reading left out, with the reason of each, and what every file held.

Knows nothing about what makes a row bad, nor where the list of them is written.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesaic.errors import DataError

if TYPE_CHECKING:
    from moesaic.data.rows import Example

TEXT_LIMIT = 2000
"""Characters of a row that are kept of it."""

SHOWN = 3
"""Bad rows that the refusal of too many names."""


@dataclass(frozen=True)
class Reject:
    """A row that was left out: where it stands, and why; `text` is how it begins, undecodable bytes replaced."""

    path: str
    line: int
    field: str | None
    reason: str
    text: str

    @property
    def kind(self) -> str:
        """The reason without what differs from row to row."""
        return re.split("[:;]", self.reason)[0]

    def __str__(self) -> str:
        field = f"{self.field}: " if self.field else ""
        return f"{Path(self.path).name}:{self.line}: {field}{self.reason}"


class Rejects:
    """Collects bad rows, at most `most` over all files; None allows none, and the first is raised as what it is.

    A file that is read again is not counted again. `listed_at`: where a person will find the list of them. `refuse`
    raises DataError for the examples of a row that reads well and cannot be used all the same, as whoever asks knows.
    """

    def __init__(
        self,
        most: int | None = None,
        listed_at: Path | None = None,
        refuse: Callable[[list["Example"]], None] = lambda row: None,
    ):
        self.most, self.listed_at, self.refuse = most, listed_at, refuse
        self._found: dict[tuple[str, int], Reject] = {}
        self._used: dict[str, int] = {}

    def add(self, error: DataError, path: Path, line: int, raw: bytes) -> None:
        """Leave out the row that `error` is about, or raise that it may not be."""
        if self.most is None:
            raise error
        why = DataError(error.what, expected=error.expected, got=error.got, hint=error.hint)
        text = raw[: 4 * TEXT_LIMIT].decode("utf-8", "replace")[:TEXT_LIMIT].rstrip("\r\n")
        self._found[str(path), line] = Reject(str(path), line, error.field, str(why), text)
        if len(self._found) > self.most:
            first = "; ".join(map(str, list(self._found.values())[:SHOWN]))
            where = f"; see {self.listed_at}" if self.listed_at else ""
            raise DataError(
                "too many rows cannot be used",
                path=path,
                line=line,
                expected=f"at most {self.most} in all files (max_bad)",
                got=len(self._found),
                hint=f"the first: {first}{where}",
            )

    def used(self, path: Path, rows: int) -> None:
        """Of a file so many rows are handed on."""
        self._used[str(path)] = rows

    def of(self, path: Path) -> list[Reject]:
        """The rows of one file that were left out."""
        return [reject for reject in self._found.values() if reject.path == str(path)]

    def files(self) -> dict[str, dict[str, Any]]:
        """Of every file that was read: rows read = rows used + rows skipped, these by reason."""
        counts = {}
        for path, used in sorted(self._used.items()):
            skipped = Counter(reject.kind for reject in self.of(Path(path)))
            counts[path] = {"read": used + skipped.total(), "used": used, "skipped": dict(sorted(skipped.items()))}
        return counts

    def listed(self) -> list[dict[str, Any]]:
        """Every reject as plain data, by file and line."""
        return [asdict(self._found[place]) for place in sorted(self._found)]
