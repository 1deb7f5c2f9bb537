"""Folders replaced whole or not at all: a crash or a failing disk leaves the old folder or the new one.

Knows nothing about the content of folders: `manifest` checks that.
"""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from moesaic.errors import StorageError
from moesaic.files import disk
from moesaic.files.manifest import MANIFEST

VERSIONS = Path(".versions")


def publish(at: Path, write: Callable[[Path], None], keep: int = 0) -> Path:
    """Replace the folder `at` by a new version that `write` fills, and return the folder of that version.

    `at` is a relative symbolic link into `.versions` beside it, so the two can be moved together; a disk without such
    links is refused before anything is written. Once the link points to the new version, all but the last `keep` old
    ones are removed. Only one process may publish an `at` at a time (see `lock`). Readers should resolve `at` once.
    """
    folder = at.parent / VERSIONS
    pointed = _pointed(at)
    with disk.scratch(folder, at) as scratch:
        found = _versions(folder, at.name)
        version = folder / f"{at.name}-{max(found, default=0) + 1:06d}"
        current = next((number for number, path in found.items() if path.name == pointed), None)
        if current is not None:
            for number in [number for number in found if number > current]:
                disk.remove(found.pop(number))  # a crash came before its link, and its room may be needed

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
            disk.rename(found[number], scratch / found[number].name)  # a half-removed version must not have its name
    return version


def require_published(at: Path) -> None:
    """Raise StorageError where something that `publish` did not make is at a path."""
    _pointed(at)


def gather(files: Mapping[str, Path], folder: Path) -> None:
    """Put those files that exist into a folder that is being written, under the names given.

    A file of a published version becomes a hard link where the disk has them, as such files never change. Others are
    copied.
    """
    disk.make_all(folder)
    for name, source in files.items():
        if source.is_file():
            disk.make_all((folder / name).parent)
            if not (is_published(source) and disk.share(Path(os.path.realpath(source)), folder / name)):
                disk.copy(source, folder / name)


def is_published(path: Path) -> bool:
    return VERSIONS.name in Path(os.path.realpath(path)).parts


def write_new(
    target: Path, write: Callable[[Path], None], needed_bytes: int, what: str, overwrite: bool = False
) -> Path:
    """Make the new folder `target`, filled by `write`, whole or not at all, and return it.

    `needed_bytes` must be free for it; messages call it `what`. `overwrite`: replace a folder of a model or mixture
    that stands there; no other folder, file or link is ever replaced.
    """
    exists = os.path.lexists(target)
    if exists and not overwrite:
        raise StorageError("the path already exists", path=target, hint=f"{_ELSEWHERE}, or pass overwrite=True")
    if exists and not _replaceable(target):
        raise StorageError("not the folder of a saved model, so nothing replaces it", path=target, hint=_ELSEWHERE)
    disk.check_space(target, needed_bytes, what)
    with disk.scratch(target.parent, target) as draft, disk.scratch(target.parent, Path(f"{target}.old")) as old:
        disk.make(draft)
        write(draft)
        disk.sync_tree(draft)
        if exists:
            disk.rename(target, old)
        try:
            disk.rename(draft, target)
        except OSError:
            if exists:
                disk.rename(old, target)
            raise
        disk.sync(target.parent)
    return target


_ELSEWHERE = "name a folder that does not exist"


def _replaceable(target: Path) -> bool:
    """Whether a folder is one that `write_new` makes: a model, a mixture or an adapter, and no link to one."""
    if target.is_symlink() or not target.is_dir() or is_published(target):
        return False
    names = {path.name for path in target.iterdir()}
    return not names or bool(names & {MANIFEST, "config.json", "adapter_config.json"})


def versions(at: Path) -> list[Path]:
    """The remaining folders that were published as `at`: the current one first, then from new to old."""
    found = _versions(at.parent / VERSIONS, at.name) if (at.parent / VERSIONS).is_dir() else {}
    pointed = _pointed(at)
    return sorted((found[n] for n in sorted(found, reverse=True)), key=lambda path: path.name != pointed)


def _pointed(at: Path) -> str | None:
    """The name of the version that `at` links to; StorageError where `at` is no such link."""
    if not os.path.lexists(at):
        return None
    target = Path(os.readlink(at)) if at.is_symlink() else at
    if target.parent != VERSIONS:
        raise StorageError("moesaic did not publish this path and will not replace it", path=at, hint="move it away")
    return target.name


def _versions(folder: Path, name: str) -> dict[int, Path]:
    found = ((re.fullmatch(re.escape(name) + r"-(\d{6,9})", path.name), path) for path in folder.iterdir())
    return {int(match[1]): path for match, path in found if match}
