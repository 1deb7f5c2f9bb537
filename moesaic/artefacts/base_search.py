"""Finds the base that an expert, a router or a mixture was made over: by name, or in the folders around it.

Knows nothing about what the base computes.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from moesaic.artefacts.base import is_base, load_base
from moesaic.artefacts.reference import Reference, base_at, pinned
from moesaic.errors import MoesaicError, WeightsError
from moesaic.files import MANIFEST, read_manifest
from moesaic.hub.locate import Located, Place, locate
from moesaic.interop.peft_config import CONFIG as ADAPTER
from moesaic.sections.places import hub_id, is_folder
from moesaic.tensors.json_config import read_settings

EXPERT = "expert"
NAME_IT = "name its folder or its id of the hub with --base"


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
