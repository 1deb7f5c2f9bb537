"""Manifests: the description of a folder, and the proof that its files are as they were written.

Checks the type of every field that is read, and knows nothing about the meaning of fields other than `kind`: each room
reads its own.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moesaic.errors import WeightsError
from moesaic.files import disk
from moesaic.files.fields import COMMON, MANIFESTS, MISSING, Type, faults
from moesaic.files.plain import digest, read_json, write_json
from moesaic.files.regular import blobs

MANIFEST = "manifest.json"
FORMAT_VERSION = 1


def write_manifest(folder: Path, fields: Mapping[str, Any]) -> None:
    """Write the manifest of `folder`, after all its other files: `fields`, versions, hashes, its own digest."""
    from moesaic import __version__

    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    files = {path.relative_to(folder).as_posix(): _facts(path) for path in paths}
    body = dict(format_version=FORMAT_VERSION, package_version=__version__, **fields, files=files)
    write_json(folder / MANIFEST, dict(**body, digest=digest(body)))


def read_manifest(folder: Path, kind: str | tuple[str, ...] | None = None, verify: bool = True) -> dict[str, Any]:
    """Read the manifest of an artefact of this `kind`; WeightsError unless it and the files it lists are as written.

    `verify=False` checks the files' sizes but not their hashes. Unlisted files are ignored.
    """
    folder = Path(os.path.realpath(folder))
    path = folder / MANIFEST
    with disk.errors(path):
        found_here = path.is_file()
    if not found_here:
        hint = "name a folder that moesaic wrote; if it is a link, copy the .versions folder beside it too"
        raise WeightsError(f"no {MANIFEST}", path=folder, hint=hint)
    manifest = read_json(path)

    def require(field: str, good: bool, what: str, expected: Any, hint: str | None = None) -> None:
        if not good:
            raise WeightsError(what, path=path, field=field, expected=expected, got=manifest.get(field), hint=hint)

    known = range(1, FORMAT_VERSION + 1)
    newer = "upgrade moesaic if a newer one wrote this folder"
    found = manifest.get("format_version")
    require("format_version", found in known, "unknown version", f"1 to {FORMAT_VERSION}", newer)
    body = {field: value for field, value in manifest.items() if field != "digest"}
    require("digest", manifest.get("digest") == digest(body), "the manifest was changed", digest(body))
    kinds = (kind,) if isinstance(kind, str) else kind
    require("kind", not kinds or manifest.get("kind") in kinds, "another kind of artefact", " or ".join(kinds or ()))
    require("kind", isinstance(manifest.get("kind"), str), "the wrong type", "text")
    for wanted in (COMMON, MANIFESTS.get(manifest["kind"], {})):
        require_types(path, manifest, wanted)
    require("files", isinstance(manifest.get("files"), dict), "not a table", "name: {sha256, bytes}")
    for name, facts in manifest["files"].items():
        _check(folder, name, facts if isinstance(facts, dict) else {}, verify)
    return body


def require_types(path: Path, value: dict[str, Any], wanted: Type) -> None:
    """Raise WeightsError for the first field of the table in a file that has another type."""
    for field, expected, got in faults(value, wanted):
        hint = "copy it again or make it again"
        if got is MISSING:
            raise WeightsError("the field is missing", path=path, field=field, expected=expected, hint=hint)
        raise WeightsError("the wrong type", path=path, field=field, expected=expected, got=repr(got), hint=hint)


def _facts(path: Path, hashed: bool = True) -> dict[str, Any]:
    size = {"bytes": path.stat().st_size}
    return {"sha256": disk.sha256_file(path), **size} if hashed else size


def _inside(folder: Path, path: Path) -> bool:
    """Whether a path is inside by its name and after following links, which may lead to the blobs of a hub cache."""
    named, at = Path(os.path.normpath(path)), Path(os.path.realpath(path))
    return named.is_relative_to(folder) and any(at.is_relative_to(parent) for parent in (folder, *blobs(folder)))


def _check(folder: Path, name: str, facts: dict[str, Any], verify: bool) -> None:
    path = folder / name
    if "\0" in name or len(name) > 1000 or not _inside(folder, path):
        raise WeightsError("not a file inside its folder", path=folder / MANIFEST, field="files", got=name)
    if not os.path.isfile(path):
        raise WeightsError("the file is missing", path=path, hint="copy the whole folder again")
    with disk.errors(path):
        found = _facts(path, hashed=verify)
    for fact, got in found.items():
        if got != (expected := facts.get(fact)):
            what, hint = "the file was changed or damaged", "copy it or make it again"
            raise WeightsError(what, path=path, field=fact, expected=expected, got=got, hint=hint)
