"""Logs of one JSON object per line that outlive kill -9: metrics, requests, diaries.

Knows nothing about the rows, and nothing about data sets: `data/` reads other people's lines.
"""

import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moesaic.errors import DataError, clipped
from moesaic.files import disk
from moesaic.files.locking import turn
from moesaic.files.plain import decoded, encoded


class JsonlWriter:
    """Appends rows to a log, each one line written at once; a line torn by a crash is cut off.

    Several processes may append to one log, each with a writer of its own.
    """

    def __init__(self, path: Path):
        self.path = path
        with disk.errors(path):
            disk.make_all(path.parent)
            self._file = path.open("a+b", buffering=0)
            with turn(self._file):
                self._mended()

    def append(self, row: dict[str, Any]) -> None:
        """Adds one row, or nothing: of a row that does not fit on the disk no part stays."""
        line = encoded(row)
        with disk.errors(self.path), turn(self._file):
            end = self._mended()
            try:
                disk.write(self._file, line)
            except BaseException:
                disk.truncate(self._file, end)
                raise

    def _mended(self) -> int:
        """The size of the log, its last line made whole. Ask only in turn: otherwise that line may be half written."""
        size = os.fstat(self._file.fileno()).st_size
        if not size:
            return 0
        self._file.seek(size - 1)
        if self._file.read(1) == b"\n":
            return size
        with mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            whole = view.rfind(b"\n") + 1
            complete = _is_row(view[whole:])
        if complete:  # whoever edited the log left out the last line break
            disk.write(self._file, b"\n")
            return size + 1
        disk.truncate(self._file, whole)
        return whole

    def cut(self, size: int) -> bool:
        """Drop the rows behind the first `size` bytes; False where there are not so many."""
        with disk.errors(self.path), turn(self._file):
            enough = os.fstat(self._file.fileno()).st_size >= size
            if enough:
                disk.truncate(self._file, size)
        return enough

    def sync(self) -> None:
        """Waits until the rows would survive a power cut, too."""
        with disk.errors(self.path):
            disk.sync(self.path)
            disk.sync(self.path.parent)

    def close(self) -> None:
        """Ends the log, its rows on the disk."""
        with self._file:
            self.sync()

    def __enter__(self) -> "JsonlWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a log with their line numbers, from 1; a last line of which only a part is written is left out."""
    with disk.errors(path):
        if not path.is_file():
            raise DataError("there is no such file", path=path)
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n") and not _is_row(line):
                    return
                try:
                    row = decoded(line)
                except ValueError as error:
                    what = f"not usable as JSON: {clipped(str(error))}"
                    raise DataError(what, path=path, line=number) from error
                yield number, row


def _is_row(line: bytes) -> bool:
    """Whether a line is complete: no part of an object's text is an object."""
    try:
        decoded(line)
    except ValueError:
        return False
    return True
