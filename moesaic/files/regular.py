"""Opens other people's files: regular ones, in their folder or in the hub cache of that folder.

Knows nothing about their content.
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


def read_regular(path: Path, limit: int) -> bytes:
    """The bytes of such a file; WeightsError where there are more than `limit`."""
    with disk.errors(path), open_regular(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise WeightsError("the file is too large", path=path, expected=f"at most {limit:,} bytes")
    return data


def open_regular(path: Path) -> BinaryIO:
    """Open a file for unbuffered reading, links followed; WeightsError if it is missing, not regular, or elsewhere.

    A pipe or a device never blocks: its type is checked before it is opened, and again after, as it may have changed.
    """
    with disk.errors(path):
        at = placed(path)
        try:
            _require_regular(path, at.stat().st_mode)
            fd = os.open(at, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        except OSError as error:
            if error.errno not in NOWHERE:
                raise
            raise WeightsError("no such file", path=path) from None
        file = os.fdopen(fd, "rb", buffering=0)
        try:
            _require_regular(path, os.fstat(fd).st_mode)
        except WeightsError:
            file.close()
            raise
    return file


def placed(path: Path) -> Path:
    """The path of a file after following links: in its folder, or in the blobs of that folder's hub cache.

    The folder itself may be reached through any link, as the user chose it; the files in it may be a stranger's.
    """
    if "\0" in str(path):
        raise WeightsError("not a file name", path=str(path).replace("\0", "\\0"))
    folder, at = Path(os.path.realpath(path.parent)), Path(os.path.realpath(path))
    if not any(at.is_relative_to(parent) for parent in (folder, *blobs(folder))):
        what, expected = "a link out of its folder", "a file in the same folder, or in the blobs of the same hub cache"
        hint = "copy the file here, or name the folder that holds it"
        raise WeightsError(what, path=path, expected=expected, got=str(at), hint=hint)
    return at


def blobs(folder: Path) -> tuple[Path, ...]:
    """The folders that a snapshot in a hub cache may link to: the blobs of its repository, and those that are shared.

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
        found = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        got = found.get(stat.S_IFMT(mode), "a device")
        raise WeightsError("not a regular file", path=path, expected="a file", got=got)
