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
from moesaic.files.plain import decoded, encoded


class JsonlWriter:
    """Appends rows to a log, each one line written at once; a line torn by a crash is cut off at opening."""

    def __init__(self, path: Path):
        self.path = path
        with disk.errors(path):
            disk.make_all(path.parent)
            self._file = path.open("a+b", buffering=0)
            if size := os.fstat(self._file.fileno()).st_size:
                with mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) as view:
                    whole = view.rfind(b"\n") + 1
                if whole < size:
                    self._file.truncate(whole)

    def append(self, row: dict[str, Any]) -> None:
        """Adds one row, or nothing: of a row that does not fit on the disk no part stays."""
        line = encoded(row)
        end = os.fstat(self._file.fileno()).st_size
        try:
            with disk.errors(self.path):
                disk.write(self._file, line)
        except BaseException:
            self._file.truncate(end)
            raise

    def close(self) -> None:
        """Waits until the rows would survive a power cut, too."""
        with self._file, disk.errors(self.path):
            disk.sync(self.path)
            disk.sync(self.path.parent)

    def __enter__(self) -> "JsonlWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a log with their line numbers, from 1; a last line still being written is left out."""
    with disk.errors(path):
        if not path.is_file():
            raise DataError("there is no such file", path=path)
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    return
                try:
                    row = decoded(line)
                except ValueError as error:
                    what = f"not usable as JSON: {clipped(str(error))}"
                    raise DataError(what, path=path, line=number) from error
                yield number, row
