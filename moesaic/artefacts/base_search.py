"""Finds the base that an expert, a router or a mixture was made over: by name, or in the folders around it.

Knows nothing about what the base computes.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesaic.artefacts.base import Base, is_base, load_base
from moesaic.errors import CompatibilityError, MoesaicError, WeightsError
from moesaic.files import MANIFEST, read_manifest
from moesaic.hub.locate import Located, Place, locate
from moesaic.interop.peft_config import CONFIG as ADAPTER
from moesaic.sections.places import hub_id, is_folder
from moesaic.tensors.json_config import read_settings

EXPERT = "expert"
NAME_IT = "name its folder or its id of the hub with --base"


@dataclass(frozen=True)
class Reference:
    """A base outside the folder of its mixture: its place, and the fingerprint that it must have."""

    place: str
    fingerprint: str

    @staticmethod
    def to(at: Located, base: Base) -> "Reference":
        """A reference that holds from every folder: a commit of the hub, a name of the package, or an absolute path."""
        return Reference(pinned(at.origin) or os.path.abspath(at.folder), base.fingerprint)

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


def base_of(part: Path, kind: str) -> Located:
    """Locate the base of a router or an expert with a manifest: around its folder, else by its recorded origin."""
    manifest, field, others = read_manifest(part, kind, verify=False), "base_fingerprint", list[str]()
    wanted = str(manifest.get(field))
    for candidate in around(part):
        if (candidate.folder / MANIFEST).is_file():
            own = read_manifest(candidate.folder, verify=False).get("fingerprint")
        else:
            own = load_base(candidate.folder).fingerprint
        if own == wanted:
            return candidate
        others.append(f"another one in {candidate.folder}")
    origin = manifest.get("base_origin")
    if isinstance(origin, dict) and (place := pinned(origin)):
        return locate(place)
    what = "its base is not in the folders around it"
    got = "; ".join(others) or None
    raise WeightsError(what, path=part, field=field, expected=wanted[:12], got=got, hint=NAME_IT)


def around(part: Path) -> Iterator[Located]:
    """Bases in the folders above a part, and in or behind the mixtures there."""
    above = [*Path(os.path.abspath(part)).parents, *Path(os.path.realpath(part)).parents]
    for folder in dict.fromkeys(above):
        for candidate in (folder / "base", folder / "mixture" / "base"):
            if is_base(candidate):
                yield Located(candidate)
        for mixture in (folder, folder / "mixture"):
            if (mixture / MANIFEST).is_file():
                manifest = read_manifest(mixture, verify=False)
                if Reference.in_manifest(manifest):
                    yield base_at(mixture, manifest)


def base_for(expert: Path, place: Place | None) -> Located:
    """Locate the base of one expert: at `place`, around it, or where its adapter_config.json says."""
    if place is not None:
        return locate(place)
    if (expert / MANIFEST).is_file():
        return base_of(expert, EXPERT)
    settings = read_settings(expert / ADAPTER) if (expert / ADAPTER).is_file() else {}
    declared, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    if not isinstance(declared, str) or not declared:
        raise WeightsError("the expert does not name its base", path=expert, hint=NAME_IT)
    try:
        found = hub_id(declared) if not is_folder(declared) else None
        return locate(declared, revision if found and not found.revision and isinstance(revision, str) else None)
    except MoesaicError as error:
        what = f"the base that the expert names cannot be found: {error.what}"
        raise WeightsError(what, path=expert, expected=declared, hint=NAME_IT) from error
