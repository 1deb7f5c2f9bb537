"""All calls that change the disk, and its errors with a hint.

Knows nothing about formats, versions or manifests. No other file of the package makes, moves, syncs or removes a file.
"""

import errno
import hashlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from moesaic.errors import StorageError
from moesaic.files import faults

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_LINKS = (errno.EPERM, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)
_MORE_ROOM = "free some space or choose another folder"
_FEWER_FILES = "remove some files or choose another folder"
_PERMISSION = "permission is missing: choose another folder or change its owner"
_FILE_IN_THE_WAY = "a file is in the way of a folder: choose another one"
_HINTS = {
    errno.ENOSPC: _MORE_ROOM,
    errno.EDQUOT: f"the quota is used up: {_MORE_ROOM}",
    errno.EFBIG: "a limit on the size of files stops it: see `ulimit -f`",
    errno.EROFS: "the file system is read-only: choose another folder",
    **dict.fromkeys((errno.EACCES, errno.EPERM), _PERMISSION),
    **dict.fromkeys((errno.EEXIST, errno.ENOTDIR), _FILE_IN_THE_WAY),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "a limit on open files stops it: see `ulimit -n`"),
    errno.EISDIR: "a folder is in the way of a file: choose another name",
    errno.EIO: "the disk is failing: see the system's log and use another disk",
}


def make(folder: Path) -> None:
    faults.reach("mkdir")
    folder.mkdir()


def make_all(folder: Path) -> None:
    """Make a folder and its missing parents, synced."""
    if not folder.is_dir():
        make_all(folder.parent)
        faults.reach("mkdir")
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def create(path: Path, data: bytes) -> None:
    """Write a file without syncing it: publishing or replacing its folder does that."""
    with path.open("wb", buffering=0) as file:
        write(file, data)


def create_from(path: Path, pieces: Iterable[bytes]) -> None:
    """Write a file piece by piece, without syncing it."""
    with path.open("wb", buffering=0) as file:
        for piece in pieces:
            write(file, piece)


def begin(path: Path) -> IO[bytes]:
    """Open a new file for `write`, without syncing it."""
    return path.open("xb", buffering=0)


def copy(source: Path, target: Path) -> None:
    """Copy a file piece by piece, without syncing it."""
    with source.open("rb") as given, target.open("wb", buffering=0) as file:
        while piece := given.read(1 << 24):
            write(file, piece)


def share(source: Path, target: Path) -> bool:
    """Hard-link `target` to a file; False where the file system has no hard links or the two are on different disks."""
    faults.reach("link")
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (*_NO_LINKS, errno.EXDEV, errno.EMLINK):
            raise
        return False
    return True


def write(file: IO[bytes], data: bytes) -> None:
    """Write all of `data`, in one system call unless the disk takes only a part."""
    left = memoryview(data)
    while left:
        faults.reach("write")
        left = left[os.write(file.fileno(), left) :]


def truncate(file: IO[bytes], size: int) -> None:
    faults.reach("truncate")
    file.truncate(size)


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, would survive a power cut (on macOS: a crash of the system)."""
    windows = sys.platform == "win32"
    if windows and path.is_dir():
        return  # folders cannot be opened there, and the system journals names by itself
    fd = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        faults.reach("fsync")
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_tree(folder: Path) -> None:
    """Sync all files and folders, innermost first; a file made private (0600) becomes as readable as `folder`."""
    readable = folder.stat().st_mode & 0o666
    for root, _, names in os.walk(folder, topdown=False):
        for path in (Path(root, name) for name in names):
            if (mode := path.stat().st_mode) | readable != mode:
                faults.reach("chmod")
                path.chmod(mode | readable)
            sync(path)
        sync(Path(root))


def rename(old: Path, new: Path) -> None:
    """Rename a file, link or folder in one step, replacing a file or link at the new name."""
    faults.reach("rename")
    os.replace(old, new)


def link(target: Path, at: Path) -> None:
    """Make the symbolic link `at`, by which a folder is replaced in one step; StorageError where that is impossible.

    Windows cannot replace a link to a folder (MoveFileEx), so it can read published folders but not publish.
    """
    if sys.platform == "win32":
        raise StorageError("Windows cannot replace a link to a folder in one step", path=at.parent, hint="use WSL")
    faults.reach("symlink")
    try:
        os.symlink(target, at)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        hint = "use a file system that has them"
        raise StorageError("symbolic links cannot be made here", path=at.parent, hint=hint) from error


def unlink(path: Path) -> None:
    faults.reach("unlink")
    path.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Remove a file or a folder; one that cannot be removed is left for the next time."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            faults.reach("unlink")
            shutil.rmtree(path)
        else:
            unlink(path)


@contextmanager
def scratch(folder: Path, target: Path) -> Iterator[Path]:
    """A free name in `folder` to prepare `target` under. Removes it at the end, and those of dead processes."""
    path = folder / f".new-{os.getpid()}-{target.name}"
    try:
        with errors(target, partial=path):
            make_all(folder)
            for other in folder.glob(".new-*"):
                found = re.fullmatch(r"\.new-(\d{1,9})-(.+)", other.name, re.DOTALL)
                if found and found[2] == target.name and not _alive(int(found[1])):
                    remove(other)
            yield path
    finally:
        remove(path)


@contextmanager
def private() -> Iterator[Path]:
    """A new temporary folder that no other user can read; removed at the end."""
    at = Path(tempfile.gettempdir())
    with errors(at):
        faults.reach("mkdir")
        held = tempfile.TemporaryDirectory(prefix="moesaic-")
    with held as folder:
        yield Path(folder)


def _alive(pid: int) -> bool:
    if pid == os.getpid():
        return False  # a dead process had our number: ours has not begun
    if sys.platform == "win32":
        return True  # there os.kill would kill the process
    try:
        os.kill(pid, 0)
    except OSError as error:
        return error.errno != errno.ESRCH
    return True


@contextmanager
def errors(target: Path, partial: Path | None = None) -> Iterator[None]:
    """Raise an OSError as StorageError about `target`, which was being written at `partial`."""
    try:
        yield
    except OSError as error:
        needed = free = None
        hint = _HINTS.get(error.errno or 0, "check the path and the disk")
        if error.errno in _FULL and not _free_names(target):
            free, hint = "no free inode: the disk holds as many files as it can", _FEWER_FILES
        elif error.errno in _FULL:
            free = f"{_free(target):,} bytes free"
            needed = f"more than {_written(partial):,} bytes" if partial else None
        raise StorageError(f"storage failed: {error}", path=target, expected=needed, got=free, hint=hint) from error


def check_space(path: Path, needed_bytes: int, what: str) -> None:
    """Raise StorageError unless the disk has room for `what` with 5% to spare."""
    with errors(path):
        needed, free = -(-needed_bytes * 105 // 100), _free(path)
    if free < needed:
        expected, got = f"{needed:,} bytes", f"{free:,} bytes free"
        raise StorageError(f"no room for {what}", path=path, expected=expected, got=got, hint=_MORE_ROOM)


def sha256_file(path: Path) -> str:
    with errors(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _free(path: Path) -> int:
    return shutil.disk_usage(_existing(path)).free


def _free_names(path: Path) -> bool:
    """Whether the disk can hold one more file; disks without a number of inodes can."""
    if sys.platform == "win32":
        return True
    found = os.statvfs(_existing(path))
    return found.f_files == 0 or found.f_favail > 0


def _existing(path: Path) -> Path:
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def _written(path: Path) -> int:
    return sum(part.lstat().st_size for part in (path, *path.rglob("*")) if part.is_file())
