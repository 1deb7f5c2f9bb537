"""The places of a model as they are written: a folder, `org/name@revision` of the Hugging Face hub, or `shipped:name`.

Knows nothing about what lies there, nor whether anything does: `weights.places` looks.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

SHIPPED = "shipped:"
"""Begins the name of a model that the package carries."""

EXAMPLES = f"a folder, an id of the hub such as google/gemma-3-270m or google/gemma-3-270m@main, or {SHIPPED}tiny"

_WORD = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_HUB_ID = re.compile(rf"({_WORD}/{_WORD})(?:@({_WORD}(?:/{_WORD})*))?")


@dataclass(frozen=True)
class HubId:
    """A repository of the hub. `revision`: a branch, a tag or a commit; None where none is written, which is `main`."""

    name: str
    revision: str | None = None

    def __str__(self) -> str:
        """With the revision written out: so it is never taken for a folder."""
        return f"{self.name}@{self.revision or 'main'}"


def hub_id(place: str) -> HubId | None:
    """A place as an id of the hub, if it has the form of one; without a revision it may be a folder all the same."""
    match = _HUB_ID.fullmatch(place)
    return HubId(match[1], match[2]) if match else None


def is_folder(place: str, within: str | os.PathLike[str] = "") -> bool:
    """Whether a place means a folder that is there, which wins over an id of the same spelling.

    With a revision, or where it begins with `shipped:`, it never does.
    """
    found = hub_id(place)
    if (found and found.revision) or place.startswith(SHIPPED):
        return False
    return os.path.isdir(os.path.join(within, os.path.expanduser(place)))


def settled(place: str, within: str | os.PathLike[str]) -> str:
    """A place as it means the same from anywhere: a folder made absolute, an id with its revision."""
    if is_folder(place, within):
        return os.path.abspath(os.path.join(within, os.path.expanduser(place)))
    return str(hub_id(place) or place)


def name_at(place: str | os.PathLike[str]) -> str:
    """The name of what lies at a place: the last word of an id, or of a path without the `best` at its end."""
    if isinstance(place, str) and not is_folder(place) and (found := hub_id(place)):
        return found.name.partition("/")[2]
    path = Path(os.path.abspath(place))
    return (path.parent if path.name == "best" else path).name
