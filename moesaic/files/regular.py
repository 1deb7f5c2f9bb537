"""Opening a file that somebody else made: a regular one, that lies in its folder or in the hub cache of that folder.

Knows nothing about what is in it.
"""

import errno
import os
import re
import stat
from pathlib import Path
from typing import BinaryIO

from moesaic.errors import WeightsError
from moesaic.files import disk

NOWHERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


def open_regular(path: Path) -> BinaryIO:
    """A file open for reading, unbuffered, links followed; refuses what is missing, no regular file, or elsewhere.

    A pipe or a device never blocks: it is asked what it is before it is opened, and again, as it may have changed.
    """
    with disk.errors(path):
        at = placed(path)
        try:
            _require_regular(path, at.stat().st_mode)
            fd = os.open(at, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        except OSError as error:
            if error.errno not in NOWHERE:
                raise
            raise WeightsError("the file is missing", path=path) from None
        file = os.fdopen(fd, "rb", buffering=0)
        try:
            _require_regular(path, os.fstat(fd).st_mode)
        except WeightsError:
            file.close()
            raise
    return file


def placed(path: Path) -> Path:
    """Where a file is once links are followed: in its folder, or where the hub cache keeps what its folder links to.

    The folder itself may be reached through any link: it is the user's, the files in it are somebody else's.
    """
    if "\0" in str(path):
        raise WeightsError("no name of a file", path=str(path).replace("\0", "\\0"))
    folder, at = Path(os.path.realpath(path.parent)), Path(os.path.realpath(path))
    if not any(at.is_relative_to(place) for place in (folder, *blobs(folder))):
        raise WeightsError(
            "a link that leads out of its folder",
            path=path,
            expected="a file in the same folder, or in the blobs of the same hub cache",
            got=str(at),
            hint="copy the file here, or name the folder that it lies in",
        )
    return at


def blobs(folder: Path) -> tuple[Path, ...]:
    """Where a snapshot in a hub cache may link to: the blobs of its repository, and those that repositories share.

    Source: huggingface_hub 2.4, `models--org--name/snapshots/revision/file -> models--org--name/blobs/hash`, which may
    itself be a link to `blobs/xx/hash` beside the repositories.
    """
    for snapshots in (folder, *folder.parents):
        repository = snapshots.parent
        if snapshots.name == "snapshots" and re.fullmatch(r"(models|datasets|spaces)--.+", repository.name):
            return repository / "blobs", repository.parent / "blobs"
    return ()


def _require_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        got = kinds.get(stat.S_IFMT(mode), "a device")
        raise WeightsError("not a regular file", path=path, expected="a file", got=got)
