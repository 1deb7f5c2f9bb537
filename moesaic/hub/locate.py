"""Where a model lies on this disk, by its place: a folder, an id of the hub, or one of those the package carries.

Knows nothing about what is in the files.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesaic.errors import WeightsError
from moesaic.hub.hub import download
from moesaic.sections.places import EXAMPLES, SHIPPED, HubId, hub_id, is_folder

CONFIG = "config.json"
SHIPPED_AT = Path(__file__).parents[1] / "shipped"

Place = str | os.PathLike[str]
"""What `locate` takes. A path that is no text is never an id."""


Origins = dict[str, dict[str, str]]
"""Name of a part, `base` or an expert's -> what `Located.origin` says of it."""


@dataclass(frozen=True)
class Located:
    """A folder on this disk, and of what did not lie there by itself: its `place`, and the `commit` of the hub."""

    folder: Path
    place: str | None = None
    commit: str | None = None

    @property
    def origin(self) -> dict[str, str]:
        """What manifests say of it; nothing of a folder, which is this machine's."""
        facts = {"place": self.place, "commit": self.commit}
        return {fact: value for fact, value in facts.items() if value is not None}


def origins_in(manifest: Mapping[str, Any], folder: Path) -> Origins:
    """What a mixture's manifest says of where its parts came from; older ones say nothing."""
    found = manifest.get("origins", {})
    if not isinstance(found, dict) or not all(map(_is_origin, found.values())):
        expected = "name: {place, commit}"
        raise WeightsError("not origins", path=folder, field="origins", expected=expected, got=repr(found))
    return found


def _is_origin(value: Any) -> bool:
    return (
        isinstance(value, dict) and value.keys() <= {"place", "commit"} and all(type(x) is str for x in value.values())
    )


def locate(place: Place, revision: str | None = None) -> Located:
    """The folder that a place means; what the hub has is downloaded, or found in its cache.

    `revision`: a branch, a tag or a commit of the hub, where the id does not say one. WeightsError where nothing lies.
    """
    text = os.fspath(place)
    folder, found = Path(os.path.expanduser(text)), hub_id(text) if isinstance(place, str) else None
    there = is_folder(text) if isinstance(place, str) else folder.is_dir()
    if revision is not None and (there or not found or found.revision):
        what = "a folder has no revisions" if there or not found else "the id says a revision already"
        raise WeightsError(what, path=folder, field="revision", got=revision)
    if there:
        return Located(folder)
    if isinstance(place, str) and place.startswith(SHIPPED):
        return Located(shipped(place.removeprefix(SHIPPED)), place)
    if found:
        wanted = HubId(found.name, revision or found.revision)
        snapshot = download(wanted)
        return Located(snapshot, str(wanted), snapshot.name)
    if folder.is_file():
        is_recipe = folder.suffix in (".yaml", ".yml")
        hint = "`moesaic run` makes a folder of a recipe" if is_recipe else f"give {EXAMPLES}"
        raise WeightsError("a file, not a folder", path=text, hint=hint)
    raise WeightsError("no such folder", path=text, hint=f"give {EXAMPLES}")


def shipped(name: str) -> Path:
    """The folder of a model that the package carries."""
    known = [path.name for path in sorted(SHIPPED_AT.glob("*")) if (path / CONFIG).is_file()]
    if name not in known:
        expected = " or ".join(f"{SHIPPED}{one}" for one in known) or "a package that carries models: this one does not"
        raise WeightsError("no such model is shipped", expected=expected, got=f"{SHIPPED}{name}")
    return SHIPPED_AT / name


def model_folder(folder: Path) -> Path:
    """Where config.json is: here, or in the subfolder `{name}-model` or `{name}-models` that holds the model."""
    if (folder / CONFIG).is_file():
        return folder
    name = Path(os.path.abspath(folder)).name
    for candidate in (folder / f"{name}-model", folder / f"{name}-models"):
        if (candidate / CONFIG).is_file():
            return candidate
    return folder


def tokenizer_folder(model: Path) -> Path:
    """Where a model's tokenizer is: beside a folder called `{name}-model` the one called `{name}-tokenizer`."""
    stem = re.sub(r"-models?$", "", Path(os.path.abspath(model)).name)
    beside = Path(os.path.abspath(model)).parent / f"{stem}-tokenizer"
    return beside if not (model / "tokenizer.json").is_file() and beside.is_dir() else model
