"""Mixtures on disk: one folder with the base, the experts and the router in it, that can be moved anywhere.

Knows nothing about text in or out: `generate/` asks the mixture that stands here.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesaic.adapters import attach
from moesaic.errors import CompatibilityError
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


def assemble(base: Base, experts: dict[str, StoredExpert], router: StoredRouter) -> AdapterMixture:
    """Join the parts, in the order of the router's names. The base's decoder becomes the mixture's."""
    if set(router.names) != set(experts):
        raise CompatibilityError(
            "the router decides between other experts", expected=sorted(router.names), got=sorted(experts)
        )
    loras = [experts[name].lora for name in router.names]
    lowest = min(layer for lora in loras for layer in lora.layers)
    attach(base.decoder, loras)
    return AdapterMixture(base.decoder, router.names, router.router, router.reads, router.selection, lowest)


def save_mixture(folder: Path, base: Path, experts: dict[str, Path], router: Path, facts: dict[str, Any]) -> None:
    """Copy the files of the parts, and nothing else that may lie beside them, into an empty folder."""
    parts = {"base": (base, base_room.FILES), "router": (router, router_room.FILES)}
    parts |= {f"experts/{name}": (path, adapter_room.FILES) for name, path in experts.items()}
    for place, (source, files) in parts.items():
        disk.make_all(folder / place)
        for file in (*files, MANIFEST):
            if (source / file).is_file():
                disk.copy(source / file, folder / place / file)
    write_manifest(folder, {"kind": KIND, "experts": list(experts), **facts})


def load_mixture(folder: Path) -> StoredMixture:
    """Read a mixture; all of its files are checked against their hashes, and the parts against each other."""
    folder = Path(os.path.realpath(folder))
    manifest = read_manifest(folder, KIND)
    names = expert_names(folder, manifest)
    base = load_base(folder / "base")
    experts = {name: load_expert(folder / "experts" / name, base.fingerprint) for name in names}
    router = load_router(folder / "router", base.fingerprint)
    return StoredMixture(assemble(base, experts, router), base.tokenizer, experts, manifest, folder)
