"""The unusable rows of files with their reasons, and counts of rows by file.

Knows nothing about the reasons themselves, nor about files that list these rows.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesaic.errors import DataError

if TYPE_CHECKING:
    from moesaic.data.containers import Given
    from moesaic.data.rows import Example

TEXT_LIMIT = 2000
"""Characters of a row in its reject."""

SHOWN = 3
"""Bad rows in the error about too many of them."""


@dataclass(frozen=True)
class Reject:
    """A skipped row: its position and reason; `text` is its beginning, with undecodable bytes replaced."""

    path: str
    line: int
    field: str | None
    reason: str
    text: str

    @property
    def kind(self) -> str:
        return re.split("[:;]", self.reason)[0]

    def __str__(self) -> str:
        field = f"{self.field}: " if self.field else ""
        return f"{Path(self.path).name}:{self.line}: {field}{self.reason}"


class Rejects:
    """Collects bad rows, at most `most` in all files; None raises the error of the first.

    A file that is read twice counts once. `listed_at`: file with the list of bad rows, for errors. `refuse`: a check of
    readable rows, which raises DataError for examples that the caller cannot use. `watch`: passes the rows of a file
    on, and may report how far they are read.
    """

    watch: Callable[[Path, Iterable["Given"]], Iterable["Given"]] = staticmethod(lambda path, rows: rows)

    def __init__(
        self,
        most: int | None = None,
        listed_at: Path | None = None,
        refuse: Callable[[list["Example"]], None] = lambda row: None,
    ):
        self.most, self.listed_at, self.refuse = most, listed_at, refuse
        self._found: dict[tuple[str, int], Reject] = {}
        self._used: dict[str, int] = {}
        self._ignored: dict[str, Counter[str]] = {}

    def add(self, error: DataError, path: Path, line: int, raw: bytes) -> None:
        """Skip the row of `error`; raises if too many rows are skipped."""
        if self.most is None:
            raise error
        why = DataError(error.what, expected=error.expected, got=error.got, hint=error.hint)
        text = raw[: 4 * TEXT_LIMIT].decode("utf-8", "replace")[:TEXT_LIMIT].rstrip("\r\n")
        self._add(Reject(str(path), line, error.field, str(why), text))

    def _add(self, reject: Reject) -> None:
        self._found[reject.path, reject.line] = reject
        if self.most is not None and len(self._found) > self.most:
            path, line = Path(reject.path), reject.line
            first = "; ".join(map(str, list(self._found.values())[:SHOWN]))
            where = f"; see {self.listed_at}" if self.listed_at else ""
            what, got = "too many unusable rows", len(self._found)
            expected, hint = f"at most {self.most} in all files (max_bad)", f"the first: {first}{where}"
            raise DataError(what, path=path, line=line, expected=expected, got=got, hint=hint)

    def used(self, path: Path, rows: int, ignored: Iterable[str] = ()) -> None:
        """Count the usable rows of a file, and the rows with each key that other programs read and this one ignores."""
        self._used[str(path)], self._ignored[str(path)] = rows, Counter(ignored)

    def told(self, paths: Iterable[Path]) -> dict[str, Any]:
        """Everything about some files, as plain data."""
        return {
            str(path): {
                "used": self._used[str(path)],
                "ignored": dict(self._ignored[str(path)]),
                "rejects": [asdict(reject) for reject in self.of(path)],
            }
            for path in paths
            if str(path) in self._used
        }

    def recall(self, told: Mapping[str, Any]) -> None:
        """Add what `told` has said about files that are not read again; raises if too many rows are skipped."""
        for path, facts in told.items():
            self.used(Path(path), facts["used"], facts["ignored"])
            for reject in facts["rejects"]:
                self._add(Reject(**reject))

    def of(self, path: Path) -> list[Reject]:
        return [reject for reject in self._found.values() if reject.path == str(path)]

    def files(self) -> dict[str, dict[str, Any]]:
        """Counts by file: rows read = rows used + rows skipped, with skipped rows by reason."""
        counts = {}
        for path, used in sorted(self._used.items()):
            skipped = Counter(reject.kind for reject in self.of(Path(path)))
            counts[path] = {"read": used + skipped.total(), "used": used, "skipped": dict(sorted(skipped.items()))}
            if ignored := self._ignored[path]:
                counts[path]["ignored"] = dict(sorted(ignored.items()))
        return counts

    def listed(self) -> list[dict[str, Any]]:
        return [asdict(self._found[key]) for key in sorted(self._found)]
