"""References of mixtures to a base outside their folder, which may move but not change.

Knows nothing about what the base computes, nor how a base is found that no manifest names.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesaic.errors import CompatibilityError, WeightsError
from moesaic.hub.locate import Located, locate

if TYPE_CHECKING:
    from moesaic.artefacts.base import Base


@dataclass(frozen=True)
class Reference:
    """A base outside the folder of its mixture: its place, and the fingerprint that it must have."""

    place: str
    fingerprint: str

    @staticmethod
    def to(at: Located, base: "Base") -> "Reference":
        """A reference that holds from every folder: a commit of the hub, a name of the package, or an absolute path."""
        return Reference(pinned(at.origin) or os.path.abspath(at.source), base.fingerprint)

    @property
    def travels(self) -> bool:
        """Whether the place means the same on every machine: an id of the hub, or a name of the package."""
        return not os.path.isabs(self.place)

    @staticmethod
    def in_manifest(manifest: Mapping[str, Any]) -> "Reference | None":
        """The reference of a mixture; None for one with a base of its own in its folder."""
        found = manifest.get("base")
        return None if found is None else Reference(found["place"], found["fingerprint"])


def pinned(origin: Mapping[str, str]) -> str | None:
    """The place of an origin that never changes its meaning: an id with its commit; None for a folder."""
    if "commit" in origin:
        return f"{origin['place'].partition('@')[0]}@{origin['commit']}"
    return origin.get("place")


def base_at(folder: Path, manifest: Mapping[str, Any]) -> Located:
    """Locate the base of the mixture in a folder; WeightsError, with the remedy, where it is gone."""
    reference = Reference.in_manifest(manifest)
    if reference is None:
        return Located(folder / "base")
    try:
        at = locate(reference.place)
    except WeightsError as error:
        hint = "put it back, or name its new place: moesaic adopt --into MIXTURE --base PATH"
        what = f"the base of this mixture is missing: {error.what}"
        raise WeightsError(what, path=folder, expected=reference.place, hint=hint) from error
    return at


def require_base(folder: Path, manifest: Mapping[str, Any], fingerprint: str) -> None:
    """Raise CompatibilityError if the base that a mixture refers to has changed since."""
    reference = Reference.in_manifest(manifest)
    if reference and reference.fingerprint != fingerprint:
        hint = "put the old files back, or name their place: moesaic adopt --into MIXTURE --base PATH"
        what, expected, got = f"the base at {reference.place} has changed", reference.fingerprint[:12], fingerprint[:12]
        raise CompatibilityError(what, path=folder, field="fingerprint", expected=expected, got=got, hint=hint)
