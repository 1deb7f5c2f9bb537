"""Facts that a folder declares, read without loading weights: the function behind `moesaic inspect`.

A folder without a manifest is unverified. Knows nothing about the use of the facts.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moesaic.artefacts.expert_names import expert_names
from moesaic.artefacts.manifest_words import ENCODER
from moesaic.artefacts.reference import Reference, base_at
from moesaic.errors import WeightsError, clipped
from moesaic.files import MANIFEST, disk, read_manifest, read_sealed
from moesaic.files.fields import EVALUATION
from moesaic.files.manifest import require_types
from moesaic.hub.locate import locate
from moesaic.interop.folders import What, what_is
from moesaic.tensors.json_config import read_settings

FOREIGN: dict[tuple[What, str], tuple[str, str]] = {
    ("adapter", "lora"): ("PEFT adapter", "adapter_config.json"),
    ("expert", "tt_lora"): ("TT-LoRA adapter", "tensor_train.json"),
    ("expert", "ffn"): ("feed-forward expert", "ffn_config.json"),
    ("model and adapter", "lora"): ("Hugging Face model with a PEFT adapter beside it", "adapter_config.json"),
    ("model", ""): ("Hugging Face model", "config.json"),
    ("encoder", ""): ("Hugging Face model", "config.json"),
}
"""Folder without a manifest, by `what_is` -> its name, and the file with its facts."""


@dataclass(frozen=True)
class Artefact:
    """A folder, its declared facts, and its parts. `verified`: every file has the hash in its manifest."""

    kind: str
    folder: Path
    facts: dict[str, Any]
    verified: bool = True
    parts: dict[str, "Artefact"] = field(default_factory=dict)


def inspect(place: str | os.PathLike[str], verify: bool = True) -> Artefact:
    """Describe a folder, or a place that `load` accepts, by its manifest if it has one.

    `verify` (default: true): compare the files with their hashes.
    """
    folder = locate(place).folder
    with disk.errors(folder):
        return _inspected(folder, verify)


def _inspected(folder: Path, verify: bool) -> Artefact:
    if (folder / MANIFEST).is_file():
        manifest = read_manifest(folder, verify=verify)
        if manifest["kind"] in ("mixture", "router"):
            expert_names(folder, manifest)
        return Artefact(manifest["kind"], folder, manifest, parts=parts_of(folder, manifest, verify))
    found = what_is(folder)
    if (folder / "mixture").is_dir() or (folder / "evaluation.json").is_file():
        path = folder / "evaluation.json"
        evaluation = read_sealed(path) if path.is_file() else {}
        if evaluation:
            require_types(path, evaluation, EVALUATION)
        parts = {"mixture": inspect(folder / "mixture")} if (folder / "mixture").is_dir() else {}
        return Artefact("run", folder, evaluation, parts=parts)
    if found.manifest:
        return inspect(found.at)
    if (found.what, found.form) in FOREIGN:
        kind, file = FOREIGN[found.what, found.form]
        return Artefact(kind, found.at, read_settings(found.at / file), verified=False)
    expected = "a run directory after `compose`, or a mixture, expert, router, base or PEFT adapter"
    raise WeightsError("nothing to inspect here", path=folder, expected=expected, hint=unjoined(folder))


def unjoined(folder: Path) -> str | None:
    """A hint about a folder without a mixture: an unfinished run, a folder of runs, or an adapter; None for others."""
    if (folder / "recipe.yaml").is_file():
        return "this run is not finished: continue it with `moesaic run`"
    if runs := sorted(recipe.parent.name for recipe in folder.glob("*/recipe.yaml")):
        return f"it holds runs: {clipped(', '.join(runs))}; name one"
    if what_is(folder).form in ("lora", "tt_lora"):
        return "an adapter, not a mixture: join it with others by `moesaic adopt`"
    return None


def parts_of(folder: Path, manifest: dict[str, Any], verify: bool) -> dict[str, Artefact]:
    """The parts of a mixture, or of a router with an encoder.

    `verify`: compare their files with their hashes, but for those that the folder's own manifest has vouched for.
    """
    names: dict[str, str] = {}
    found: dict[str, Artefact] = {}
    if manifest.get("kind") == "mixture":
        experts = {f"expert {name}": f"experts/{name}" for name in expert_names(folder, manifest)}
        names = {"router": "router", **experts}
        found["base"] = base_part(folder, manifest, verify)
    elif (folder / ENCODER).is_dir():
        names = {"encoder": ENCODER}
    return found | {
        label: inspect(folder / place, verify and not vouched(folder, manifest, place))
        for label, place in names.items()
    }


def base_part(folder: Path, manifest: dict[str, Any], verify: bool) -> Artefact:
    """The base of a mixture, in its folder or elsewhere; a base that is gone has no facts but the error."""
    at = Reference.in_manifest(manifest)
    try:
        covered = at is None and vouched(folder, manifest, "base")
        return inspect(base_at(folder, manifest).folder, verify and not covered)
    except WeightsError as error:
        if at is None:
            raise
        return Artefact("missing base", folder, {"problem": str(error)}, verified=False)


def vouched(folder: Path, manifest: dict[str, Any], place: str) -> bool:
    """Whether a manifest lists all files of a part with the hashes of the part's own manifest, if it has one."""
    if not (folder / place / MANIFEST).is_file():
        return True
    own = read_manifest(folder / place, verify=False)["files"]
    listed = manifest["files"]
    return f"{place}/{MANIFEST}" in listed and all(listed.get(f"{place}/{name}") == own[name] for name in own)
