"""Routers on disk: tensors, the ordered names of the experts, feature and selection.

Knows nothing about training.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from moesaic.artefacts import sentence_encoder as sentences_room
from moesaic.artefacts.expert_names import expert_names
from moesaic.artefacts.manifest_words import ENCODER
from moesaic.artefacts.sentence_encoder import StoredEncoder, load_sentences, save_sentences
from moesaic.config import PROJECTIONS, SHARES, Feature
from moesaic.errors import CompatibilityError, RecipeError, WeightsError, clipped
from moesaic.files import MANIFEST, disk, gather, read_manifest, write_manifest
from moesaic.model.deciding import Decider, Judge
from moesaic.model.features import Body
from moesaic.model.sentences import SentenceRouter, Through
from moesaic.routing import Routing, Selection
from moesaic.routing.guard import Guard, guarded
from moesaic.routing.routers import ROUTERS, Router, TrainedRouter
from moesaic.routing.states import Features
from moesaic.tensors.tensors import fit, read_tensors, require_fit, write_tensors

T = TypeVar("T")

KIND = "router"
TENSORS, INFO, FEATURES = "router.safetensors", "training_info.json", "features.safetensors"
GUARD = "guard.safetensors"

FILES = (TENSORS, INFO, FEATURES, GUARD, *(f"{ENCODER}/{file}" for file in (*sentences_room.FILES, MANIFEST)))
# FEATURES belongs to routers that experts may join later: see `adoption`

UNNAMED = {"projections": PROJECTIONS, "shares": SHARES}
"""Features that no recipe names, by their words in manifests."""


@dataclass(frozen=True)
class StoredRouter:
    """A router with its kind, the names of the experts, the feature that it reads, and the selection.

    `guard`: decides on which prompts the router abstains; None: on none.
    """

    router: TrainedRouter
    kind: str
    names: tuple[str, ...]
    feature: str
    selection: Selection
    manifest: dict[str, Any]
    encoder: StoredEncoder | None = None
    guard: Guard | None = None

    @property
    def reads(self) -> Feature:
        """The feature that a mixture gives to `decides`: the text, if the router has its own encoder."""
        if self.encoder:
            return Feature.parse("text")
        return UNNAMED.get(self.feature) or Feature.parse(self.feature)

    @property
    def decides(self) -> Router:
        return SentenceRouter(self.encoder.sentences, self.router) if self.encoder else self.router

    def put(self, device: torch.device) -> None:
        """Move all networks to a device; they stay float32, whatever the type of the base."""
        for part in (self.router, self.guard, self.encoder.sentences if self.encoder else None):
            if part is not None:
                part.to(device)

    def over(self, body: Body | None, disabled: Collection[str] = ()) -> Decider:
        """Make the decider over a base, or None if the router reads no base; `disabled`: experts never chosen."""
        guard: Judge | None = self.guard
        if self.encoder and self.guard:
            guard = Through(self.encoder.sentences, self.guard)
        ruling = self.guard.ruling if self.guard else None
        return Decider.over(body, self.names, self.decides, self.reads, self.selection, disabled, guard, ruling)

    def weigh(self, features: Features, wording: Tensor) -> Routing:
        """Decide by features that are read already, of a router with an encoder by the encoder's vectors; the `wording`
        of the same prompts is for the guard.
        """
        judged, ruling = (self.guard(features, wording), self.guard.ruling) if self.guard else (None, None)
        return guarded(self.selection, self.router(features), judged, ruling)


def save_router(
    folder: Path, stored: StoredRouter, base_fingerprint: str, facts: dict[str, Any], encoder_at: Path | None = None
) -> None:
    """Write a router into an empty folder; `facts`: metrics, data hash, seed, ...

    `encoder_at`: another router's folder of the same encoder, to copy it from (default: write the encoder).
    """
    write_tensors(folder / TENSORS, stored.router.state_dict())
    if stored.guard:
        write_tensors(folder / GUARD, stored.guard.state_dict())
    own: dict[str, Any] = {
        "kind": KIND,
        "router": stored.kind,
        "experts": list(stored.names),
        "feature": stored.feature,
    }
    how: dict[str, Any] = {"selection": asdict(stored.selection), "shape": stored.router.shape}
    if stored.guard:
        how["guard"] = {"shape": stored.guard.shape, "least": stored.guard.least}
    if stored.encoder:
        own["encoder_fingerprint"] = stored.encoder.fingerprint
        if encoder_at:
            gather({file: encoder_at / file for file in (*sentences_room.FILES, MANIFEST)}, folder / ENCODER)
        else:
            disk.make_all(folder / ENCODER)
            save_sentences(folder / ENCODER, stored.encoder)
    write_manifest(folder, {**own, **how, "base_fingerprint": base_fingerprint, **facts})


def load_router(folder: Path, base_fingerprint: str | None = None) -> StoredRouter:
    """Read a router; CompatibilityError if it was trained on another base."""
    manifest = read_manifest(folder, KIND)
    if base_fingerprint:
        require_base(folder, manifest, base_fingerprint)
    names, kind = expert_names(folder, manifest), manifest["router"]
    if kind not in ROUTERS:
        expected = " or ".join(ROUTERS)
        raise WeightsError("unknown kind of router", path=folder, field="router", expected=expected, got=kind)
    path = folder / MANIFEST
    router = routed_by(kind, manifest["shape"], len(names), read_tensors(folder / TENSORS), folder)
    selection = declared(path, "selection", lambda: Selection(**manifest["selection"]))
    if manifest["feature"] not in UNNAMED and "encoder_fingerprint" not in manifest:
        declared(path, "feature", lambda: Feature.parse(manifest["feature"]))
    encoder = None
    if "encoder_fingerprint" in manifest:
        encoder = load_sentences(folder / ENCODER)
        require("encoder", folder / ENCODER, encoder.fingerprint, manifest["encoder_fingerprint"])
    guard = None
    if "guard" in manifest:
        guard = guard_by(manifest["guard"]["shape"], len(names), read_tensors(folder / GUARD), folder)
    return StoredRouter(router.eval(), kind, names, manifest["feature"], selection, manifest, encoder, guard)


def routed_by(
    kind: str, shape: dict[str, Any], experts: int, tensors: Mapping[str, Tensor], folder: Path
) -> TrainedRouter:
    """Make the router of a kind and a shape over these tensors; no memory is taken before both agree."""
    path = folder / MANIFEST
    with torch.device("meta"):
        outline = declared(path, "shape", lambda: ROUTERS[kind](**shape))
    require_fit(outline, tensors, folder / TENSORS)
    between = shape.get("num_experts", len(shape.get("words", [])))
    if between != experts:
        what = "the router decides between another number of experts"
        raise WeightsError(what, path=path, field="shape", expected=experts, got=between)
    router = ROUTERS[kind](**shape)
    fit(router, tensors, folder / TENSORS)
    return router


def guard_by(shape: dict[str, Any], experts: int, tensors: Mapping[str, Tensor], folder: Path) -> Guard:
    """Make the guard of a shape over these tensors; no memory is taken before both agree."""
    path = folder / MANIFEST
    with torch.device("meta"):
        outline = declared(path, "guard.shape", lambda: Guard(**shape))
    require_fit(outline, tensors, folder / GUARD)
    if shape["num_experts"] != experts:
        what = "the guard knows another number of experts"
        raise WeightsError(what, path=path, field="guard.shape", expected=experts, got=shape["num_experts"])
    guard = Guard(**shape)
    fit(guard, tensors, folder / GUARD)
    return guard.eval()


def declared(path: Path, field: str, make: Callable[[], T]) -> T:
    """What a field of a manifest declares; WeightsError with the field where nothing can be made of its values."""
    try:
        return make()
    except RecipeError as error:
        facts = {"expected": error.expected, "got": error.got}
        raise WeightsError(error.what, path=path, field=field, **facts) from error
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError, OverflowError) as error:
        raise WeightsError("unusable", path=path, field=field, got=clipped(str(error))) from error


def require_base(folder: Path, manifest: Mapping[str, Any], fingerprint: str) -> None:
    require("base", folder, manifest["base_fingerprint"], fingerprint)


def require(part: str, path: Path, got: str, expected: str) -> None:
    """Raise CompatibilityError if the fingerprint of a router's base or encoder differs from the expected one."""
    if got != expected:
        what, field, hint = f"the router was trained on another {part}", f"{part}_fingerprint", "train the router again"
        raise CompatibilityError(what, path=path, field=field, expected=expected[:12], got=got[:12], hint=hint)
