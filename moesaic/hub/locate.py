"""Finds the folder of a model by its place: a folder, an id of the hub, or a model shipped with the package.

Knows nothing about the files' content.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesaic.errors import WeightsError, nearest
from moesaic.hub.hub import download
from moesaic.sections.places import EXAMPLES, SHIPPED, HubId, hub_id, is_folder, is_local

CONFIG = "config.json"
SHIPPED_AT = Path(__file__).parents[1] / "shipped"

Place = str | os.PathLike[str]
"""A folder or an id; only text can be an id."""

Origins = dict[str, dict[str, str]]
"""Name of a part, `base` or an expert's -> its `Located.origin`."""


@dataclass(frozen=True)
class Located:
    """A folder on this disk; for a model of the hub or the package also its `place` and the hub's `commit`.

    `file`: the GGUF file that the folder was unpacked from.
    """

    folder: Path
    place: str | None = None
    commit: str | None = None
    file: Path | None = None

    @property
    def source(self) -> Path:
        """What the user named: the folder, or the file that plays its role."""
        return self.file or self.folder

    @property
    def origin(self) -> dict[str, str]:
        """Place and commit for manifests; empty for a folder, which only this machine has."""
        facts = {"place": self.place, "commit": self.commit}
        return {fact: value for fact, value in facts.items() if value is not None}


def origins_in(manifest: Mapping[str, Any], folder: Path) -> Origins:
    """The origins of a mixture's parts, from its manifest; older manifests have none."""
    found = manifest.get("origins", {})
    if not isinstance(found, dict) or not all(map(_is_origin, found.values())):
        expected = "name: {place, commit}"
        raise WeightsError("invalid origins", path=folder, field="origins", expected=expected, got=repr(found))
    return found


def _is_origin(value: Any) -> bool:
    named = isinstance(value, dict) and value.keys() <= {"place", "commit"}
    return named and all(type(text) is str for text in value.values())


def locate(place: Place, revision: str | None = None) -> Located:
    """The folder of a place, downloaded or unpacked unless it is cached; WeightsError where there is none.

    `revision`: a branch, a tag or a commit of the hub, for an id without one. An id without any whose first word is a
    folder is a misspelt path, and is not downloaded.
    """
    text = os.fspath(place)
    folder, found = Path(os.path.expanduser(text)), hub_id(text) if isinstance(place, str) else None
    exists = is_folder(text) if isinstance(place, str) else is_local(folder)
    if revision is not None and (exists or not found or found.revision):
        what = "a folder has no revisions" if exists or not found else "the id already has a revision"
        raise WeightsError(what, path=folder, field="revision", got=revision)
    if exists and folder.is_file():
        from moesaic.gguf.unpacking import unpacked  # reads tensors, which `moesaic --help` does not need

        return Located(unpacked(folder), file=folder)
    if exists:
        return Located(folder)
    if isinstance(place, str) and place.startswith(SHIPPED):
        return Located(shipped(place.removeprefix(SHIPPED)), place)
    if found and not found.revision and revision is None and folder.parent.is_dir():
        known = [(folder.parent / one.name).as_posix() for one in sorted(folder.parent.iterdir()) if one.is_dir()]
        raise WeightsError("no such folder", path=text, hint=nearest(text, known) or f"give {EXAMPLES}")
    if found:
        snapshot = download(wanted := HubId(found.name, revision or found.revision))
        return Located(snapshot, str(wanted), snapshot.name)
    if folder.is_file():
        is_recipe = folder.suffix in (".yaml", ".yml")
        hint = "`moesaic run` makes a folder of a recipe" if is_recipe else f"give {EXAMPLES}"
        raise WeightsError("a file, not a folder", path=text, hint=hint)
    raise WeightsError("no such folder", path=text, hint=f"give {EXAMPLES}")


def shipped(name: str) -> Path:
    known = [path.name for path in sorted(SHIPPED_AT.glob("*")) if (path / CONFIG).is_file()]
    if name not in known:
        expected = " or ".join(f"{SHIPPED}{one}" for one in known) or "a package with models"
        raise WeightsError("no such model is shipped", expected=expected, got=f"{SHIPPED}{name}")
    return SHIPPED_AT / name


def model_folder(folder: Path) -> Path:
    """The folder of config.json: `folder` itself, or its subfolder `{name}-model` or `{name}-models`."""
    name = Path(os.path.abspath(folder)).name
    candidates = (folder, folder / f"{name}-model", folder / f"{name}-models")
    return next((candidate for candidate in candidates if (candidate / CONFIG).is_file()), folder)


def tokenizer_folder(model: Path) -> Path:
    """The folder of a model's tokenizer: `model` itself, or `{name}-tokenizer` beside a folder `{name}-model`."""
    stem = re.sub(r"-models?$", "", Path(os.path.abspath(model)).name)
    beside = Path(os.path.abspath(model)).parent / f"{stem}-tokenizer"
    return beside if not (model / "tokenizer.json").is_file() and beside.is_dir() else model
