"""Prepared data of a run: folders that are found by the hash of everything that they are made from.

Made once, by the first process that asks, and read by all. Knows nothing about what a folder holds.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from moesaic import __version__
from moesaic.errors import DataError, WeightsError
from moesaic.files import MANIFEST, digest, disk, read_json, read_manifest, sha256_file, write_json, write_manifest
from moesaic.files.locking import turn_at

KIND = "prepared"
INDEX = "known.json"
SETTLED = 2_000_000_000
"""Nanoseconds after which a file that was written has a time of its own: the hash of a younger one is not kept."""

Facts = dict[str, Any]


class Prepared:
    """The prepared data in a folder."""

    def __init__(self, room: Path):
        self.room, self.used = room, set[Path]()

    def folder(self, key: str, write: Callable[[Path], Facts], inside: Path | None = None) -> tuple[Path, Facts]:
        """The folder of a key and the facts that `write` returned when it filled the folder.

        `inside`: the prepared folder that this one is made from, and lies in.
        """
        at = (inside or self.room) / key[:32]
        if (found := _read(at)) is None:
            with turn_at(at.with_name(f".{at.name}.turn")):
                if (found := _read(at)) is None:
                    disk.remove(at)
                    with disk.scratch(at.parent, at) as draft:
                        disk.make(draft)
                        found = write(draft)
                        write_manifest(draft, {"kind": KIND, "facts": found})
                        disk.sync_tree(draft)
                        disk.rename(draft, at)
        self.used.add(at)
        return at, found

    def tidy(self) -> None:
        """Remove what this process has not used."""
        known = {path.name for path in self.used}
        for path in self.room.glob("*") if self.room.is_dir() else ():
            if path.is_dir() and path.name not in known:
                disk.remove(path)
        for path in self.room.rglob(".*.turn"):
            disk.unlink(path)

    def hash_of(self, path: Path) -> str:
        """The SHA-256 of a file. A file that has not changed since by size, time and number is not read again."""
        about = _about(path)
        known = self._known("files").get(str(path))
        if known and known[:3] == about:
            return known[3]
        found = sha256_file(path)
        if about == _about(path) and time.time_ns() - about[1] > SETTLED:
            self._remember("files", str(path), [*about, found])
        return found

    def value(self, names: Any, compute: Callable[[], Any]) -> Any:
        """Plain data that depends on what has these names, and on nothing else; computed once."""
        key = digest(names)
        if key not in (known := self._known("values")):
            self._remember("values", key, found := compute())
            return found
        return known[key]

    def _known(self, what: str) -> Mapping[str, Any]:
        return self._index().get(what, {})

    def _index(self) -> dict[str, Any]:
        at = self.room / INDEX
        try:
            found = read_json(at) if at.is_file() else {}
        except WeightsError:  # damaged: what it knew is found again
            return {}
        return found if found.get("version") == __version__ else {}

    def _remember(self, what: str, name: str, value: Any) -> None:
        disk.make_all(self.room)
        index = self._index()
        write_json(self.room / INDEX, {**index, "version": __version__, what: {**index.get(what, {}), name: value}})


def unchanged(paths: Mapping[Path, str], hash_of: Callable[[Path], str]) -> None:
    """Raise DataError for a file that has another hash now."""
    for path, known in paths.items():
        if hash_of(path) != known:
            raise DataError("the file changed while it was read", path=path, hint="run again when it is written")


def _about(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ino]


def _read(at: Path) -> Facts | None:
    """The facts of a folder; None where there is none, or not all of it."""
    if not (at / MANIFEST).is_file():
        return None
    try:
        return read_manifest(at, KIND, verify=False)["facts"]
    except WeightsError:
        return None
