"""A folder replaced whole or not at all: what a crash, a full disk or a failing one leaves is the old or the new one.

Knows nothing about what the folder holds, nor whether that is right: see `manifest` for the proof.
"""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from moesaic.errors import StorageError
from moesaic.files import disk

VERSIONS = Path(".versions")


def publish(at: Path, write: Callable[[Path], None], keep: int = 0) -> Path:
    """Puts what `write` puts into an empty folder where `at` is, and returns the folder of this new version.

    `at` is a relative symbolic link into `.versions` beside it, so the two move together; a disk without such links is
    refused before anything is written. The old version stands until the link has swung; then all but the last `keep`
    go. One publisher of an `at` at a time (see `lock`). A reader resolves `at` once and reads from there.
    """
    folder = at.parent / VERSIONS
    pointed = _pointed(at)
    with disk.scratch(folder, at) as scratch:
        found = _versions(folder, at.name)
        version = folder / f"{at.name}-{max(found, default=0) + 1:06d}"
        standing = next((number for number, path in found.items() if path.name == pointed), None)
        if standing is not None:
            for number in [number for number in found if number > standing]:
                disk.remove(found.pop(number))  # a crash kept the link from it, and its room may be needed

        draft, link = scratch / version.name, scratch / at.name
        disk.make(scratch)
        disk.link(VERSIONS / version.name, link)
        disk.make(draft)
        write(draft)
        disk.sync_tree(draft)
        disk.rename(draft, version)
        disk.sync(folder)
        disk.rename(link, at)
        disk.sync(at.parent)
        for number in sorted(found)[: max(len(found) - keep, 0)]:
            disk.rename(found[number], scratch / found[number].name)  # half of one never bears its name
    return version


def gather(files: Mapping[str, Path], folder: Path) -> None:
    """Puts those of the files that are there into a folder that is being written, under these names.

    One of a published version is there twice then and on the disk once, where that has hard links: nobody ever writes
    into one. Any other is copied.
    """
    disk.make_all(folder)
    for name, source in files.items():
        if source.is_file():
            disk.make_all((folder / name).parent)
            if not (is_published(source) and disk.share(Path(os.path.realpath(source)), folder / name)):
                disk.copy(source, folder / name)


def is_published(path: Path) -> bool:
    """Whether a file is part of a published version."""
    return VERSIONS.name in Path(os.path.realpath(path)).parts


def write_new(target: Path, write: Callable[[Path], None], needed_bytes: int, what: str) -> Path:
    """Puts what `write` puts into an empty folder where nothing is yet, whole or not at all, and returns `target`.

    `needed_bytes` must be free for `what`, as messages call it.
    """
    if target.exists():
        raise StorageError("there is something already", path=target, hint="name a folder that does not exist")
    disk.check_space(target, needed_bytes, what)
    with disk.scratch(target.parent, target) as draft:
        disk.make(draft)
        write(draft)
        disk.sync_tree(draft)
        disk.rename(draft, target)
        disk.sync(target.parent)
    return target


def versions(at: Path) -> list[Path]:
    """The folders that were published as `at` and still stand: the one it links to first, then from new to old."""
    found = _versions(at.parent / VERSIONS, at.name) if (at.parent / VERSIONS).is_dir() else {}
    pointed = _pointed(at)
    return sorted((found[n] for n in sorted(found, reverse=True)), key=lambda path: path.name != pointed)


def _pointed(at: Path) -> str | None:
    """The name of the version that `at` links to; refuses to replace what was not published."""
    if not os.path.lexists(at):
        return None
    target = Path(os.readlink(at)) if at.is_symlink() else at
    if target.parent != VERSIONS:
        raise StorageError("moesaic did not publish this and will not replace it", path=at, hint="move it away")
    return target.name


def _versions(folder: Path, name: str) -> dict[int, Path]:
    found = ((re.fullmatch(re.escape(name) + r"-(\d{6,9})", path.name), path) for path in folder.iterdir())
    return {int(match[1]): path for match, path in found if match}
