"""Feed-forward experts: whole blocks beside those of a shared base.

Knows nothing about rows or routers.
"""

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Generator

from moesaic.adapters import feedforward, token_ffn
from moesaic.adapters.blocks import Blocks, graft, mean_of
from moesaic.adapters.feedforward import FFN
from moesaic.adapters.lora import layer_of
from moesaic.artefacts.backbone import Backbone
from moesaic.artefacts.base import Base
from moesaic.artefacts.ffn import CONFIG, FILES, FFNFiles, FFNPlace, StoredFFN, load_ffn, save_ffn
from moesaic.artefacts.router import StoredRouter
from moesaic.errors import CompatibilityError
from moesaic.files import MANIFEST
from moesaic.interop.outline import Outline, part_of, shapes_in, weighed
from moesaic.kinds.compatibility import Difference, block_differences
from moesaic.kinds.extraction import extract
from moesaic.kinds.gates import Weights, beside, halves, plain
from moesaic.kinds.kind import Facts, Footprint, Joined, Kind, Listener, Mixing, Reloaded, Started, Terms
from moesaic.kinds.parameters import count_blocks, count_token_blocks, num_parameters
from moesaic.model.classifier import Head
from moesaic.model.decoder import Decoder
from moesaic.model.mixture import AdapterMixture
from moesaic.model.source import HELD
from moesaic.model.token import TokenMixture
from moesaic.model.whole import LEVELS
from moesaic.residency.fetching import Fetchable
from moesaic.routing import Gates
from moesaic.routing.routers import GatesRouter
from moesaic.sections.expert import TRAINED, Expert
from moesaic.sections.layers import layer_range
from moesaic.sections.section import Text

Joint = AdapterMixture | TokenMixture


class FFNSection(Expert):
    """A feed-forward expert."""

    kind: Literal["ffn"]
    """Kind of the expert: feed-forward blocks."""
    path: Text | None = None
    """Folder or `org/name@revision` of blocks that were trained elsewhere, or of a fine-tuned version of the base."""
    anchor: bool = False
    """Train the blocks beside the base's own, each with half the weight, so that they learn to be mixed."""
    ignore_rest: bool = False
    """With path: report and leave out the other differences between a fine-tuned model and the base, rather than refuse
    them."""

    def idle(self) -> dict[str, str]:
        idle = super().idle()
        if self.path:
            return {**idle, "anchor": TRAINED}
        return {**idle, "ignore_rest": "it goes with kind: ffn and path"}


class FFNKind(Kind[Blocks, FFN, StoredFFN]):
    """Feed-forward blocks."""

    word = "ffn"
    site = "ffn"
    levels = LEVELS
    section = FFNSection
    changes = "has blocks of"
    trains_weights = True
    files = FILES

    # --- trained here

    def design(self, spec: Any) -> Blocks:
        return Blocks(anchor=spec.anchor)

    def joint(self, designs: Sequence[Blocks]) -> Blocks:
        """Blocks without an anchor, as the control answers alone."""
        return Blocks()

    def wide(self, designs: Sequence[Blocks], layers: Sequence[str | None], body: Any, own: str | None) -> Blocks:
        """Blocks as wide as all experts' together; in fewer layers wider, so that no parameters are missing."""
        config = body.config
        depths = [len(layer_range(some, config.num_layers)) for some in layers]
        return Blocks(inner=-(-sum(depths) * config.intermediate_size // len(layer_range(own, config.num_layers))))

    def begin(self, body: Any, design: Blocks, layers: str | None, generator: Generator) -> Started[FFN]:
        body.requires_grad_(False)
        own = layer_range(layers, body.config.num_layers)
        design.plant(body, design.fresh(body, own, generator))
        return Started(beside(body, halves) if design.anchor else plain, lambda: design.lifted(body, own))

    def resume(self, body: Any, stored: StoredFFN, design: Blocks) -> None:
        body.requires_grad_(False)
        design.plant(body, stored.ffn)

    def facts(self, design: Blocks) -> Facts:
        return {"anchor": True} if design.anchor else {}

    def save(self, folder: Path, value: FFN, base: Base | Backbone, facts: Facts, head: Head | None = None) -> None:
        save_ffn(folder, value, base.fingerprint, facts)

    def reload(self, folder: Path, base: Base, design: Blocks) -> Reloaded[StoredFFN]:
        stored = load_ffn(folder, base.fingerprint)
        if design.anchor:
            feedforward.attach(base.decoder, [stored.ffn])
        else:
            graft(base.decoder, stored.ffn)
        return Reloaded(base.decoder, beside(base.decoder, halves) if design.anchor else plain, stored)

    def idle_part(self, expert: Reloaded[StoredFFN], base: Decoder) -> str | None:
        """The first block that equals the base's."""
        own = FFN.of(base, range(base.config.num_layers))
        blocks = expert.stored.ffn.blocks.items()
        return next((path for path, block in blocks if all(map(torch.equal, block, own.blocks[path]))), None)

    # --- read

    def holds(self, folder: Path) -> bool:
        return (folder / CONFIG).is_file()

    def read(self, folder: Path, base: Base) -> StoredFFN:
        return load_ffn(folder, base.fingerprint, base.decoder)

    def open(self, folder: Path, base: Base, index: int) -> tuple[Fetchable, StoredFFN]:
        files = FFNFiles(folder, base.fingerprint, base.decoder)
        return FFNPlace(files, base.decoder, index), StoredFFN(files.outline, files.manifest)

    def value(self, stored: StoredFFN) -> FFN:
        return stored.ffn

    def fingerprint(self, stored: StoredFFN, folder: Path) -> str:
        """That of the manifest, as the values of an expert that is read may have the base's type."""
        return str(stored.manifest.get("fingerprint") or stored.fingerprint)

    # --- joined

    def attach(self, base: Decoder, experts: Sequence[StoredFFN]) -> None:
        feedforward.attach(base, [one.ffn for one in experts])

    def route_inside(
        self,
        base: Decoder,
        experts: Sequence[StoredFFN],
        gates: GatesRouter,
        disabled: Collection[int] = (),
        balanced: bool = False,
    ) -> None:
        blocks, how = [one.ffn for one in experts], (gates.by_path, gates.k, gates.renormalise)
        token_ffn.attach(base, base.config, blocks, *how, disabled, balanced)

    def join(self, base: Base, experts: Sequence[StoredFFN], router: StoredRouter, mixing: Mixing) -> Joint:
        """With a source that fetches experts, the slots of blocks are empty so far. At level `token` all are held."""
        blocks = [one.ffn for one in experts]
        if mixing.level == "token":
            return self.join_inside(base, experts, router, mixing.disabled)
        lowest = min(layer for one in blocks for layer in one.layers)
        (feedforward.attach if mixing.source is HELD else feedforward.reserve)(base.decoder, blocks)
        return AdapterMixture(base.decoder, router.over(base.decoder, mixing.disabled), lowest, mixing.source)

    def held(self, base: Decoder, stored: StoredFFN, index: int) -> StoredFFN:
        attached = token_ffn.attached(base, stored.ffn, index) or feedforward.attached(base, index)
        return StoredFFN(attached, stored.manifest)

    def average(self, decoder: Decoder, experts: Sequence[StoredFFN]) -> Decoder:
        """The mean of the blocks, with the base's own for an expert that has none; not the function of uniform weights,
        because a block is not linear in its matrices.
        """
        graft(decoder, mean_of(decoder, [one.ffn for one in experts]))
        return decoder

    # --- counted

    def counts(self, base: Decoder, mixture: Joint, experts: Sequence[StoredFFN], weights: Weights) -> dict[str, int]:
        blocks = [one.ffn for one in experts]
        if mixture.level == "token":
            return count_token_blocks(base, cast(GatesRouter, mixture.router), blocks)
        return count_blocks(base, mixture.router, blocks, weights)

    def first(self, mixture: Any, experts: Sequence[StoredFFN]) -> tuple[Decoder, Gates | None]:
        return (mixture.decoder, None) if mixture.level == "token" else super().first(mixture, experts)

    def cost(self, base: Decoder, stored: StoredFFN) -> int:
        slots = feedforward.ffns(base)
        replaced = sum(num_parameters(slots[path]) for path in stored.ffn.blocks)
        return num_parameters(base) - replaced + stored.ffn.num_parameters

    # --- planned

    def planned(self, base: Outline, spec: Expert) -> Footprint:
        inside = layer_range(spec.layers, base.config.num_layers)
        own = {name for name in base.shapes if part_of(name) == "ffn" and layer_of(name) in inside}
        return Footprint.of(base, own)

    def of_model(self, model: Outline, base: Outline, held: bool = False) -> Footprint:
        return Footprint.of(model, {name for name in model.shapes if part_of(name) == "ffn"})

    def beside(self, base: Outline, folder: Path) -> tuple[Footprint, list[Difference]]:
        name = os.path.basename(os.path.abspath(folder))
        return Footprint(counts=weighed(folder)), block_differences(base, name, shapes_in(folder))

    def require_composable(self, base: Outline) -> None:
        if base.sparse:
            what = "a sparse base has no feed-forward block to replace"
            raise CompatibilityError(what, path=base.name, field="site")

    # --- adopted

    def adopt(self, base: Base, path: Path, tuned: bool, terms: Terms, progress: Listener, name: str) -> Joined[FFN]:
        if tuned:
            ffn, facts = self.extract(base, path, terms, progress, name)
            return Joined(ffn, None, facts)
        stored = self.read(path, base)
        verified = (path / MANIFEST).is_file()
        facts = {"from": "feed-forward expert", "verified": verified, "parameters": stored.ffn.num_parameters}
        return Joined(stored.ffn, path, facts)

    def extracted(self, folder: Path) -> bool:
        return not self.holds(folder)

    def terms(self, spec: Any) -> Terms:
        return Terms(ignore_rest=spec.ignore_rest)

    def of_base(self, base: Base) -> FFN:
        return FFN.of(base.decoder, range(base.decoder.config.num_layers))

    def extract(self, base: Base, folder: Path, terms: Terms, progress: Listener, name: str) -> tuple[FFN, Facts]:
        """Extract a fine-tuned model's blocks; other differences are reported tensor by tensor, then refused."""
        found = extract(base, folder)
        for tensor, moved in sorted(found.outside.items(), key=lambda item: -item[1]):
            far = f"by {moved:.2%} of its norm"
            progress.warn(f"{name}: {tensor} differs from the base's {far}, which an ffn expert cannot hold")
        if not terms.ignore_rest:
            found.require_nothing_else(folder)
        progress.note(f"{name}: feed-forward blocks of {len(found.ffn.layers)} layers")
        facts = {"from": "fine-tuned model", "verified": True, "ignored": len(found.outside)}
        return found.ffn, {**facts, "parameters": found.ffn.num_parameters}
