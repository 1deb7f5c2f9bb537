"""Experts that join a mixture as they are: adapters, and fine-tuned models as experts of one kind or another.

Knows nothing about prompts or routers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from moesaic.adapters import LoRA
from moesaic.adapters.feedforward import FFN
from moesaic.artefacts import ffn as ffn_room
from moesaic.artefacts.adapter import StoredExpert, load_expert, save_expert
from moesaic.artefacts.base import Base, load_base
from moesaic.artefacts.ffn import StoredFFN, load_ffn, save_ffn
from moesaic.artefacts.tokenizer_check import spoken_otherwise, tokenizer_beside
from moesaic.artefacts.whole_model import load_whole
from moesaic.compose.difference import difference, require_variant
from moesaic.compose.extraction import extract
from moesaic.compose.mixture import Stored
from moesaic.errors import CompatibilityError, RecipeError
from moesaic.files import MANIFEST, disk
from moesaic.hub.locate import Located
from moesaic.interop.decoders import named
from moesaic.interop.peft import CONFIG
from moesaic.runs.progress import Progress

Kind = Literal["lora", "ffn", "model"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SITE_OF: Mapping[Kind, str] = {"lora": "linear", "ffn": "ffn", "model": "model"}
"""Kind of expert -> the site where such experts meet."""

OUTSIDE_LIMIT = 0.5
"""The share of what fine-tuning changed that may lie where no LoRA expert can hold it."""


@dataclass(frozen=True)
class Terms:
    """As what a fine-tuned model joins: the kind, for LoRA the rank, and whether what an ffn cannot hold is ignored."""

    kind: Kind
    rank: int
    ignore_rest: bool


@dataclass(frozen=True)
class Member:
    """An expert of the mixture to be. `expert`: None for a whole model, which is its folder; `folder`: of its files,
    None: to be written; `origin`: its place and commit, where it was no folder of this machine; `features`: of its
    prompts.
    """

    expert: LoRA | FFN | None
    folder: Path | None
    facts: dict[str, Any]
    origin: dict[str, str]
    features: torch.Tensor | None = None


def kind_of(word: str) -> Kind:
    """The kind that a word means."""
    if word not in KINDS:
        raise RecipeError("unknown", field="kind", expected=" or ".join(KINDS), got=word)
    return KINDS[KINDS.index(word)]


def experts_at(manifest: Mapping[str, Any]) -> Kind:
    """The kind of the experts of a mixture, by its manifest."""
    return next(kind for kind in KINDS if SITE_OF[kind] == manifest["site"])


def expert_of(stored: Stored) -> LoRA | FFN | None:
    """An expert as a mixture has it, apart from its folder."""
    if isinstance(stored, StoredExpert):
        return stored.lora
    return stored.ffn if isinstance(stored, StoredFFN) else None


def member(base: Base, at: Located, terms: Terms, told: Progress, name: str) -> Member:
    """One expert to be adopted, whatever its folder holds, held against the base."""
    path, verified = at.folder, (at.folder / MANIFEST).is_file()
    told_of = [file for file in (CONFIG, ffn_room.CONFIG, "config.json") if (path / file).is_file()]
    tuned = told_of == ["config.json"]
    if terms.kind == "model":
        size = sum(tensor.numel() for tensor in named(load_whole(path, base).decoder).values())
        return Member(None, path, {"from": "model", "verified": verified, "parameters": size}, at.origin)
    if terms.kind == "ffn":
        if tuned:
            ffn, facts = blocks_of(base, path, terms.ignore_rest, told, name)
            return Member(ffn, None, facts, at.origin)
        ffn = load_ffn(path, base.fingerprint, base.decoder).ffn
        facts = {"from": "feed-forward expert", "verified": verified, "parameters": ffn.num_parameters}
        return Member(ffn, path, facts, at.origin)
    if tuned:
        lora, facts = from_model(base, path, terms.rank, told, name)
        return Member(lora, None, facts, at.origin)
    stored = load_expert(path, base.fingerprint, base.decoder)
    for odd in tokenizer_beside(path, base.tokenizer):
        told.warn(f"{name}: {odd}")
    made = "expert" if stored.manifest else "PEFT adapter"
    facts = {"from": made, "verified": bool(stored.manifest), "rank": stored.lora.rank}
    return Member(stored.lora, path, {**facts, "parameters": stored.lora.num_parameters}, at.origin)


def blocks_of(base: Base, path: Path, ignore_rest: bool, told: Progress, name: str) -> tuple[FFN, dict[str, Any]]:
    """A fine-tuned model's feed-forward blocks; what else of it differs is told tensor by tensor, then refused."""
    found = extract(base, path)
    for tensor, moved in sorted(found.outside.items(), key=lambda item: -item[1]):
        told.warn(f"{name}: {tensor} differs from the base's by {moved:.2%} of its norm, and an ffn expert has it not")
    if not ignore_rest:
        found.require_nothing_else(path)
    told.note(f"{name}: feed-forward blocks of {len(found.ffn.layers)} layers")
    facts = {"from": "fine-tuned model", "verified": True, "ignored": len(found.outside)}
    return found.ffn, {**facts, "parameters": found.ffn.num_parameters}


def from_model(base: Base, path: Path, rank: int, told: Progress, name: str) -> tuple[LoRA, dict[str, Any]]:
    """A fine-tuned model's difference to the base as an expert; what it loses is told, and too much is refused."""
    if rank < 1:
        raise RecipeError("no rank", field="rank", expected=">= 1", got=rank)
    tuned = load_base(path)
    require_variant(base, tuned.decoder.config, tuned.tokenizer, path)
    for odd in spoken_otherwise(base.tokenizer, tuned.tokenizer):
        told.warn(f"{name}: {odd}")
    try:
        found = difference(base.decoder, tuned.decoder, rank)
    except CompatibilityError as error:
        error.path = path
        raise
    far = ", ".join(f"{part} by {moved:.2%}" for part, moved in sorted(found.changed.items(), key=lambda x: -x[1])[:3])
    if found.outside > OUTSIDE_LIMIT:
        hint = "fine-tune only linears, or train an adapter"
        raise CompatibilityError(
            "most of what fine-tuning changed lies outside the linears",
            path=path,
            expected=f"at most {OUTSIDE_LIMIT:.0%} of the change's energy",
            got=f"{found.outside:.1%}: {far}",
            hint=hint,
        )
    if found.changed:
        more = f" and {len(found.changed) - 3} more" if len(found.changed) > 3 else ""
        told.warn(f"{name}: {found.outside:.1%} of the change is lost, as it lies outside the linears: {far}{more}")
    told.note(f"{name}: rank {rank} keeps {found.kept:.1%} of what changed in the linears")
    facts = {"from": "fine-tuned model", "verified": True, "rank": rank, "kept": found.kept, "outside": found.outside}
    return found.lora, {**facts, "parameters": found.lora.num_parameters}


def written(folder: Path, name: str, made: Member, base: Base) -> Path:
    """The folder of an expert that was made here."""
    disk.make_all(folder)
    facts = {"name": name, **made.facts, **base.told}
    if isinstance(made.expert, FFN):
        save_ffn(folder, made.expert, base.fingerprint, facts)
    elif made.expert is not None:
        save_expert(folder, made.expert, base.fingerprint, facts)
    return folder
