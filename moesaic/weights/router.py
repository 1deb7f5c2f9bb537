"""Routers on disk: tensors, the ordered names of the experts, and how feature and selection go with them.

Knows nothing about how a router was trained.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moesaic.config import Feature
from moesaic.errors import CompatibilityError, WeightsError
from moesaic.files import read_manifest, write_manifest
from moesaic.routing import Selection
from moesaic.routing.routers import ROUTERS, TrainedRouter
from moesaic.weights.names import expert_names
from moesaic.weights.tensors import fit, read_tensors, write_tensors

KIND = "router"
TENSORS, INFO = "router.safetensors", "training_info.json"
FILES = (TENSORS, INFO)


@dataclass(frozen=True)
class StoredRouter:
    """A router with everything that deciding needs: what it reads, whom its logits mean, how they become weights."""

    router: TrainedRouter
    kind: str
    names: tuple[str, ...]
    feature: str
    selection: Selection
    manifest: dict[str, Any]

    @property
    def reads(self) -> Feature:
        return Feature.parse(self.feature)


def save_router(folder: Path, stored: StoredRouter, base_fingerprint: str, facts: dict[str, Any]) -> None:
    """Write a router into an empty folder; `facts`: metrics, data hash, seed, ..."""
    write_tensors(folder / TENSORS, stored.router.state_dict())
    own = {"kind": KIND, "router": stored.kind, "experts": list(stored.names), "feature": stored.feature}
    how = {"selection": asdict(stored.selection), "shape": stored.router.shape}
    write_manifest(folder, {**own, **how, "base_fingerprint": base_fingerprint, **facts})


def load_router(folder: Path, base_fingerprint: str | None = None) -> StoredRouter:
    """Read a router; it is refused over another base, whose states would mean something else."""
    manifest = read_manifest(folder, KIND)
    if base_fingerprint and manifest["base_fingerprint"] != base_fingerprint:
        raise CompatibilityError(
            "the router was trained on another base",
            path=folder,
            field="base_fingerprint",
            expected=base_fingerprint[:12],
            got=manifest["base_fingerprint"][:12],
            hint="train the router again",
        )
    names, kind = expert_names(folder, manifest), manifest["router"]
    if kind not in ROUTERS:
        raise WeightsError("unknown kind of router", path=folder, field="router", got=kind)
    router = ROUTERS[kind](**manifest["shape"])
    fit(router, read_tensors(folder / TENSORS), folder / TENSORS)
    selection = Selection(**manifest["selection"])
    return StoredRouter(router.eval(), kind, names, manifest["feature"], selection, manifest)
