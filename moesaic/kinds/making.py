"""One expert that writes, of any kind: begun in the base, taken out of it, kept as a folder, read back alone.

Knows nothing about rows, nor how an expert is taught.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from moesaic.adapters import Design, LowRankLinear, adapt, attach, detach
from moesaic.adapters import feedforward as beside
from moesaic.adapters.blocks import Blocks, graft
from moesaic.adapters.feedforward import FFN
from moesaic.artefacts.adapter import load_expert, save_expert
from moesaic.artefacts.ffn import StoredFFN, load_ffn, save_ffn
from moesaic.artefacts.whole_model import StoredModel, load_whole, save_whole
from moesaic.compose.mixture import Stored
from moesaic.kinds.courses import Expert, Made, Plan, alone
from moesaic.model.decoder import Decoder
from moesaic.routing import Gates
from moesaic.runs.workshop import Workshop
from moesaic.sections.layers import layer_range
from moesaic.train.language import GatesFor, plain


@dataclass(frozen=True)
class Begun:
    """A decoder of which only the expert asks for gradients, the gates it is called with, and how to take it out."""

    decoder: Decoder
    gates: GatesFor
    taken: Callable[[], Expert]


def halves(rows: int) -> Gates:
    """All rows on the only expert there is, which has as much to say as the base."""
    return Gates.of(torch.full((rows, 1), 0.5))


def begin(workshop: Workshop, plan: Plan) -> Begun:
    """An expert before its first step: the same at every call."""
    decoder = workshop.fresh_base().decoder
    layers = layer_range(plan.layers, decoder.config.num_layers)
    generator = torch.Generator().manual_seed(workshop.recipe.seed)
    match plan.design:
        case Design() as design:
            decoder.requires_grad_(False)
            adapter = design.fresh(decoder, layers, generator)
            adapt(decoder, adapter)
            return Begun(decoder, alone, lambda: detach(decoder, adapter))
        case Blocks() as blocks:
            decoder.requires_grad_(False)
            blocks.plant(decoder, blocks.fresh(decoder, layers, generator))
            return Begun(decoder, halves if blocks.anchor else plain, lambda: blocks.lifted(decoder, layers))
        case _:
            return Begun(decoder.requires_grad_(True), plain, lambda: decoder)


def keep(folder: Path, workshop: Workshop, made: Made, facts: dict[str, Any]) -> None:
    """Write an expert into an empty folder, as its kind is kept."""
    fingerprint = workshop.base_fingerprint
    match made.expert:
        case FFN() as ffn:
            save_ffn(folder, ffn, fingerprint, facts)
        case Decoder() as decoder:
            save_whole(folder, decoder, workshop.base.tokenizer, fingerprint, facts)
        case adapter:
            save_expert(folder, adapter, fingerprint, facts, made.head)


@dataclass(frozen=True)
class Lone:
    """An expert that was read back, in a base of its own, as it was trained."""

    decoder: Decoder
    gates: GatesFor
    stored: Stored


def lone(workshop: Workshop, plan: Plan, folder: Path) -> Lone:
    """The expert of a plan, from its folder."""
    base = workshop.fresh_base()
    match plan.design:
        case Design():
            stored = load_expert(folder, base.fingerprint)
            attach(base.decoder, [stored.lora])
            return Lone(base.decoder, alone, stored)
        case Blocks() as blocks:
            block = load_ffn(folder, base.fingerprint)
            if blocks.anchor:
                beside.attach(base.decoder, [block.ffn])
            else:
                graft(base.decoder, block.ffn)
            return Lone(base.decoder, halves if blocks.anchor else plain, block)
        case _:
            whole = load_whole(folder, base)
            return Lone(whole.decoder, plain, whole)


def untouched(workshop: Workshop, found: Lone) -> str | None:
    """A part of an expert that changes nothing: a matrix beside which only zeros stand, a block that is the base's."""
    for path, module in found.decoder.named_modules():
        if isinstance(module, LowRankLinear) and not module.b.any():
            return path
    base = workshop.base.decoder
    if isinstance(found.stored, StoredFFN):
        own = FFN.of(base, range(base.config.num_layers))
        blocks = found.stored.ffn.blocks.items()
        return next((path for path, block in blocks if all(map(torch.equal, block, own.blocks[path]))), None)
    if isinstance(found.stored, StoredModel) and all(map(torch.equal, found.decoder.parameters(), base.parameters())):
        return "every tensor of it"
    return None
