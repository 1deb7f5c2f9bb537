"""Logs of one JSON object per line that survive kill -9.

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
    """Appends rows to a log, each in one write; cuts off a line torn by a crash.

    Several processes may append to one log, each with its own writer.
    """

    def __init__(self, path: Path):
        self.path = path
        with disk.errors(path):
            disk.make_all(path.parent)
            self._file = path.open("a+b", buffering=0)
            with turn(self._file):
                self._repair()

    def append(self, row: dict[str, Any]) -> None:
        """Append one row, or nothing where the disk has no room for the whole row."""
        line = encoded(row)
        with disk.errors(self.path), turn(self._file):
            end = self._repair()
            try:
                disk.write(self._file, line)
            except BaseException:
                disk.truncate(self._file, end)
                raise

    def _repair(self) -> int:
        """Complete or cut off the last line, and return the size. Call it in turn, when no other process writes."""
        size = os.fstat(self._file.fileno()).st_size
        if not size:
            return 0
        self._file.seek(size - 1)
        if self._file.read(1) == b"\n":
            return size
        with mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            whole = view.rfind(b"\n") + 1
            complete = _is_row(view[whole:])
        if complete:  # an editor left out the last line break
            disk.write(self._file, b"\n")
            return size + 1
        disk.truncate(self._file, whole)
        return whole

    def cut(self, size: int) -> bool:
        """Drop the rows after the first `size` bytes; False where the log is shorter."""
        with disk.errors(self.path), turn(self._file):
            enough = os.fstat(self._file.fileno()).st_size >= size
            if enough:
                disk.truncate(self._file, size)
        return enough

    def sync(self) -> None:
        """Wait until the rows would survive a power cut."""
        with disk.errors(self.path):
            disk.sync(self.path)
            disk.sync(self.path.parent)

    def close(self) -> None:
        with self._file:
            self.sync()

    def __enter__(self) -> "JsonlWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a log with their line numbers, from 1; an incomplete last line is left out."""
    with disk.errors(path):
        if not path.is_file():
            raise DataError("no such file", path=path)
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n") and not _is_row(line):
                    return
                try:
                    row = decoded(line)
                except ValueError as error:
                    raise DataError(f"not usable as JSON: {clipped(str(error))}", path=path, line=number) from error
                yield number, row


def _is_row(line: bytes) -> bool:
    """Whether a line is complete: no prefix of a JSON object is a JSON object."""
    try:
        decoded(line)
    except ValueError:
        return False
    return True
