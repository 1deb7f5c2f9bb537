"""Places of models as users write them: a folder, a GGUF file, `org/name@revision` of the hub, or `shipped:name`.

Knows nothing about the models at these places: see `hub.locate`.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

SHIPPED = "shipped:"
"""Prefix of the names of models in the package."""

EXAMPLES = f"a folder, a .gguf file, an id of the hub such as google/gemma-3-270m or with @main, or {SHIPPED}tiny"

_WORD = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_HUB_ID = re.compile(rf"({_WORD}/{_WORD})(?:@({_WORD}(?:/{_WORD})*))?")


@dataclass(frozen=True)
class HubId:
    """A repository of the hub. `revision`: a branch, a tag or a commit; None means `main`."""

    name: str
    revision: str | None = None

    def __str__(self) -> str:
        """Includes the revision, so that the id is never read as a folder."""
        return f"{self.name}@{self.revision or 'main'}"

    @property
    def typed(self) -> str:
        """The id as a user wrote it, for messages."""
        return self.name if self.revision is None else str(self)


def hub_id(place: str) -> HubId | None:
    """Parse a place as an id of the hub; None for another form. Without a revision, the place may also be a folder."""
    match = _HUB_ID.fullmatch(place)
    return HubId(match[1], match[2]) if match else None


def is_local(path: str | os.PathLike[str]) -> bool:
    """Whether there is a folder, or a GGUF file, which plays the role of one."""
    return os.path.isdir(path) or (os.fspath(path).endswith(".gguf") and os.path.isfile(path))


def is_folder(place: str, within: str | os.PathLike[str] = "") -> bool:
    """Whether a place is an existing folder or GGUF file, which takes precedence over an id of the same spelling.

    A place with a revision or with the prefix `shipped:` is never a folder.
    """
    found = hub_id(place)
    if (found and found.revision) or place.startswith(SHIPPED):
        return False
    return is_local(os.path.join(within, os.path.expanduser(place)))


def settled(place: str, within: str | os.PathLike[str]) -> str:
    """Make a place independent of the working directory: an absolute folder, or an id with its revision."""
    if is_folder(place, within):
        return os.path.abspath(os.path.join(within, os.path.expanduser(place)))
    return str(hub_id(place) or place)


def relative(place: str, within: str | os.PathLike[str]) -> str:
    """Write an absolute folder as a path from the folder `within`; other places as they are."""
    if not os.path.isabs(place):
        return place
    path = os.path.relpath(place, within)
    return path if path.startswith(os.pardir) else os.path.join(os.curdir, path)


def name_at(place: str | os.PathLike[str]) -> str:
    """Short name of a place: the last word of an id, or of a path without a final `best`."""
    if isinstance(place, str) and not is_folder(place) and (found := hub_id(place)):
        return found.name.partition("/")[2]
    path = Path(os.path.abspath(place))
    return (path.parent if path.name == "best" else path).name
