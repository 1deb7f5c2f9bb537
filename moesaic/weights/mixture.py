"""Mixtures on disk: one folder with the base, the experts and the router in it, that can be moved anywhere.

Knows nothing about text in or out: `generate/` asks the mixture that stands here.
"""

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesaic.adapters import attach
from moesaic.errors import CompatibilityError, WeightsError
from moesaic.files import MANIFEST, disk, read_manifest, write_manifest
from moesaic.model.mixture import AdapterMixture
from moesaic.tokenizer import Tokenizer
from moesaic.weights import adapter as adapter_room
from moesaic.weights import base as base_room
from moesaic.weights import router as router_room
from moesaic.weights.adapter import StoredExpert, load_expert
from moesaic.weights.base import Base, load_base
from moesaic.weights.names import expert_names
from moesaic.weights.router import StoredRouter, load_router

KIND = "mixture"


@dataclass(frozen=True)
class StoredMixture:
    """A mixture as read, ready to route and compute."""

    model: AdapterMixture
    tokenizer: Tokenizer
    experts: dict[str, StoredExpert]
    manifest: dict[str, Any]
    folder: Path


def assemble(
    base: Base, experts: dict[str, StoredExpert], router: StoredRouter, disabled: Collection[str] = ()
) -> AdapterMixture:
    """Join the parts, in the order of the router's names. The base's decoder becomes the mixture's."""
    if set(router.names) != set(experts):
        raise CompatibilityError(
            "the router decides between other experts", expected=sorted(router.names), got=sorted(experts)
        )
    loras = [experts[name].lora for name in router.names]
    lowest = min(layer for lora in loras for layer in lora.layers)
    attach(base.decoder, loras)
    return AdapterMixture(base.decoder, router.names, router.decides, router.reads, router.selection, lowest, disabled)


def save_mixture(folder: Path, base: Path, experts: dict[str, Path], router: Path, facts: dict[str, Any]) -> None:
    """Copy the files of the parts, and nothing else that may lie beside them, into an empty folder."""
    parts = {"base": base_room.files_of(base)}
    parts["router"] = {file: router / file for file in (*router_room.FILES, MANIFEST)}
    for name, path in experts.items():
        parts[f"experts/{name}"] = {file: path / file for file in (*adapter_room.FILES, MANIFEST)}
    for place, files in parts.items():
        disk.make_all(folder / place)
        for file, source in files.items():
            if source.is_file():
                disk.make_all((folder / place / file).parent)
                disk.copy(source, folder / place / file)
    write_manifest(folder, {"kind": KIND, "experts": list(experts), **facts})


def load_mixture(folder: Path) -> StoredMixture:
    """Read a mixture; all of its files are checked against their hashes, and the parts against each other."""
    folder = Path(os.path.realpath(folder))
    manifest = read_manifest(folder, KIND)
    names = expert_names(folder, manifest)
    base = load_base(folder / "base")
    experts = {name: load_expert(folder / "experts" / name, base.fingerprint, base.decoder) for name in names}
    router = load_router(folder / "router", base.fingerprint)
    mixture = assemble(base, experts, router, disabled_in(folder, manifest))
    return StoredMixture(mixture, base.tokenizer, experts, manifest, folder)


def disabled_in(folder: Path, manifest: dict[str, Any]) -> list[str]:
    """The experts that a mixture's manifest keeps from being chosen."""
    disabled, names = manifest.get("disabled", []), manifest["experts"]
    if not isinstance(disabled, list) or not all(name in names for name in disabled):
        expected = f"some of {', '.join(names)}"
        raise WeightsError("not experts", path=folder / MANIFEST, field="disabled", expected=expected, got=disabled)
    return disabled
