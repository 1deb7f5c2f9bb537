"""Routers on disk: tensors, the ordered names of the experts, and how feature and selection go with them.

Knows nothing about how a router was trained.
"""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moesaic.artefacts import sentence_encoder as sentences_room
from moesaic.artefacts.expert_names import expert_names
from moesaic.artefacts.sentence_encoder import StoredEncoder, load_sentences, save_sentences
from moesaic.config import PROJECTIONS, Feature
from moesaic.errors import CompatibilityError, WeightsError
from moesaic.files import MANIFEST, disk, gather, read_manifest, write_manifest
from moesaic.model.deciding import Decider
from moesaic.model.features import Body
from moesaic.model.sentences import SentenceRouter
from moesaic.routing import Selection
from moesaic.routing.routers import ROUTERS, Router, TrainedRouter
from moesaic.tensors.tensors import fit, read_tensors, write_tensors

KIND = "router"
TENSORS, INFO, FEATURES = "router.safetensors", "training_info.json", "features.safetensors"
ENCODER = "encoder"
"""The folder, in that of the router, of an encoder that it reads: a copy, so that the router can be moved."""

FILES = (TENSORS, INFO, FEATURES, *(f"{ENCODER}/{file}" for file in (*sentences_room.FILES, MANIFEST)))
# the last only of routers that experts may join later: see `stages.adopting`


@dataclass(frozen=True)
class StoredRouter:
    """A router with everything that deciding needs: what it reads, whom its logits mean, how they become weights."""

    router: TrainedRouter
    kind: str
    names: tuple[str, ...]
    feature: str
    selection: Selection
    manifest: dict[str, Any]
    encoder: StoredEncoder | None = None

    @property
    def reads(self) -> Feature:
        """What a mixture hands to `decides`: the text, where an encoder of its own reads that."""
        if self.encoder:
            return Feature.parse("text")
        return PROJECTIONS if self.feature == "projections" else Feature.parse(self.feature)

    @property
    def decides(self) -> Router:
        """What `reads` -> logits, the encoder included."""
        return SentenceRouter(self.encoder.sentences, self.router) if self.encoder else self.router

    def over(self, body: Body | None, disabled: Collection[str] = ()) -> Decider:
        """Its decisions over a base, which may be None where it reads none; `disabled`: experts never chosen."""
        return Decider.over(body, self.names, self.decides, self.reads, self.selection, disabled)


def save_router(
    folder: Path, stored: StoredRouter, base_fingerprint: str, facts: dict[str, Any], encoder_at: Path | None = None
) -> None:
    """Write a router into an empty folder; `facts`: metrics, data hash, seed, ...

    `encoder_at`: where its encoder is written already, in the folder of another router; None: it is written anew.
    """
    write_tensors(folder / TENSORS, stored.router.state_dict())
    own = {"kind": KIND, "router": stored.kind, "experts": list(stored.names), "feature": stored.feature}
    how = {"selection": asdict(stored.selection), "shape": stored.router.shape}
    if stored.encoder:
        own["encoder_fingerprint"] = stored.encoder.fingerprint
        if encoder_at:
            gather({file: encoder_at / file for file in (*sentences_room.FILES, MANIFEST)}, folder / ENCODER)
        else:
            disk.make_all(folder / ENCODER)
            save_sentences(folder / ENCODER, stored.encoder)
    write_manifest(folder, {**own, **how, "base_fingerprint": base_fingerprint, **facts})


def load_router(folder: Path, base_fingerprint: str | None = None) -> StoredRouter:
    """Read a router; it is refused over another base, whose states would mean something else."""
    manifest = read_manifest(folder, KIND)
    if base_fingerprint:
        require_base(folder, manifest, base_fingerprint)
    names, kind = expert_names(folder, manifest), manifest["router"]
    if kind not in ROUTERS:
        raise WeightsError("unknown kind of router", path=folder, field="router", got=kind)
    router = ROUTERS[kind](**manifest["shape"])
    fit(router, read_tensors(folder / TENSORS), folder / TENSORS)
    selection = Selection(**manifest["selection"])
    encoder = load_own_encoder(folder, manifest["encoder_fingerprint"]) if "encoder_fingerprint" in manifest else None
    return StoredRouter(router.eval(), kind, names, manifest["feature"], selection, manifest, encoder)


def require_base(folder: Path, manifest: Mapping[str, Any], fingerprint: str) -> None:
    """Refuse a router over another base than it was trained on."""
    if manifest["base_fingerprint"] != fingerprint:
        raise CompatibilityError(
            "the router was trained on another base",
            path=folder,
            field="base_fingerprint",
            expected=fingerprint[:12],
            got=manifest["base_fingerprint"][:12],
            hint="train the router again",
        )


def load_own_encoder(folder: Path, expected: str) -> StoredEncoder:
    """The encoder that lies in a router's folder; it must be the one that the router was trained on."""
    encoder = load_sentences(folder / ENCODER)
    if encoder.fingerprint != expected:
        raise CompatibilityError(
            "the router was trained on another encoder",
            path=folder / ENCODER,
            field="encoder_fingerprint",
            expected=expected[:12],
            got=encoder.fingerprint[:12],
            hint="train the router again",
        )
    return encoder
