"""Locks: one process at a time in a folder, or at a file.

Knows nothing about the work done there, and nothing about other machines: on a network disk a lock may not hold.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from moesaic.errors import RecipeError
from moesaic.files import disk


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Lock `folder` for this process and the children that it forks; the system unlocks it when all have ended."""
    path = folder / ".lock"
    with disk.errors(path):
        disk.make_all(folder)
        file = path.open("a+b", buffering=0)
    with file:
        with disk.errors(path):
            try:
                _take(file)
            except (BlockingIOError, PermissionError) as error:
                file.seek(0)
                what = f"the folder is in use by process {file.read(20).decode() or 'unknown'}"
                hint = "wait for it, stop it or choose another folder"
                raise RecipeError(what, path=folder, hint=hint) from error
            disk.truncate(file, 0)
            disk.write(file, str(os.getpid()).encode())
        yield


@contextmanager
def turn(file: IO[bytes]) -> Iterator[None]:
    """Wait for this process's turn at an open file; the end of the process also ends its turn."""
    _wait(file)
    try:
        yield
    finally:
        _leave(file)


@contextmanager
def turn_at(path: Path) -> Iterator[None]:
    """Wait for this process's turn at a file, which is made if it is missing."""
    with disk.errors(path):
        disk.make_all(path.parent)
        file = path.open("a+b", buffering=0)
    with file, turn(file):
        yield


if sys.platform == "win32":
    import msvcrt

    _BEYOND = (1 << 31) - 2  # beyond any file's data, as Windows lets nobody read locked bytes

    def _take(file: IO[bytes]) -> None:
        file.seek(1 << 20)  # beyond the process's number, which others must read
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

    def _wait(file: IO[bytes]) -> None:
        file.seek(_BEYOND)
        msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)

    def _leave(file: IO[bytes]) -> None:
        file.seek(_BEYOND)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)
else:
    import fcntl

    def _take(file: IO[bytes]) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _wait(file: IO[bytes]) -> None:
        fcntl.flock(file, fcntl.LOCK_EX)

    def _leave(file: IO[bytes]) -> None:
        fcntl.flock(file, fcntl.LOCK_UN)
