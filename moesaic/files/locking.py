"""One process at a time in a folder, and at a file.

Knows nothing about what they do there, and nothing about other machines: on a network disk it may not hold.
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
    """Holds `folder` for this process; the system lets go when the process ends, however it ends.

    A child forked meanwhile holds it too, until it has ended as well.
    """
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
                what = f"in use by process {file.read(20).decode() or 'unknown'}"
                hint = "wait for it, stop it or choose another folder"
                raise RecipeError(what, path=folder, hint=hint) from error
            disk.truncate(file, 0)
            disk.write(file, str(os.getpid()).encode())
        yield


@contextmanager
def turn(file: IO[bytes]) -> Iterator[None]:
    """Waits until no other process has its turn at this open file; the end of the process ends its turn, too."""
    _wait(file)
    try:
        yield
    finally:
        _leave(file)


if sys.platform == "win32":
    import msvcrt

    _BEYOND = (1 << 31) - 2  # any file's data, as locked bytes cannot be read there

    def _take(file: IO[bytes]) -> None:
        file.seek(1 << 20)  # locked bytes cannot be read there, and others must read the number
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
