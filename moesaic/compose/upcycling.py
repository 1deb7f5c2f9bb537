"""Sparse models made of dense ones without a training: several models' feed-forward blocks, or copies of one's.

In every layer a matrix routes every token. Knows nothing about recipes or terminals.
"""

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from moesaic.artefacts.whole_model import require_tokenizer
from moesaic.compose.export import LAYOUTS, Whole, read_whole, write_whole
from moesaic.compose.token_gates import RANDOM, Prompted, Reader, alike, gate_named
from moesaic.data.prompts import read_prompts
from moesaic.errors import CompatibilityError, MoesaicWarning, RecipeError
from moesaic.hub.locate import Place, locate
from moesaic.interop.decoders import by_default, read_decoder
from moesaic.interop.folders import require_model
from moesaic.interop.sparse_models import MATRICES, Blocks, Weights, blocks_of, require_sparse, sparse
from moesaic.kinds.difference import farthest, require_shape
from moesaic.migrate.mergekit import read_moe
from moesaic.sections.places import name_at

MOST = 100
"""The most prompts of one expert that are read."""
RECIPES = (".yaml", ".yml")


@dataclass(frozen=True)
class Part:
    """A model whose blocks become an expert, as `mergekit.Expert` describes it."""

    at: Path
    prompted: Prompted
    noise: float = 0.0
    scale: float = 1.0


@dataclass(frozen=True)
class Plan:
    """All that decides a composed model. `dtype`: of its tensors; None for that of the base."""

    base: Path
    parts: Sequence[Part]
    gate: str
    chosen: int
    dtype: torch.dtype | None = None
    family: str | None = None


def upcycle(
    models: Mapping[str, Place] | Sequence[Place],
    out: str | os.PathLike[str],
    *,
    base: Place | None = None,
    gate: str | None = None,
    prompts: Mapping[str, str | os.PathLike[str]] | None = None,
    experts_per_token: int = 2,
    copies: int | None = None,
    slices: int = 1,
    drop: float = 0.0,
    format: str | None = None,
    seed: int = 0,
) -> Path:
    """Make a sparse model of dense ones in a new folder that transformers opens, and return the folder.

    `models`: fine-tunes of one `base` (default: the first of them), whose feed-forward blocks become the experts; the
    rest is the base's. Or one file of mergekit-moe, which decides all but `format` and `seed`. Or one model and its
    number of `copies`: then `slices` cuts each copy into so many smaller experts, of which a token passes so many times
    more, and `drop` draws this share of each copy's inner columns anew (arXiv 2502.19261). Without it the model begins
    with the function of the dense one (arXiv 2212.05055).
    `gate`: the router's rows. From `prompts`, for every model a file of them: `ridge` (the default with prompts) and
    `means`, at the router's own input, and mergekit's `hidden` and `cheap_embed`; or `random` (the default without) and
    `uniform_random`. `format`: mixtral, mixtral-packed, qwen2-moe or qwen3-moe (default: by the models). The folder is
    read back.
    Raises CompatibilityError for models of different shapes, or of a family without a sparse one.
    """
    places = [*models.values()] if isinstance(models, Mapping) else [*models]
    generator = torch.Generator().manual_seed(seed)
    only = places[0] if len(places) == 1 else None
    if only is not None and Path(only).suffix in RECIPES:
        plan = plan_of(Path(only))
    elif only is not None or copies is not None:
        if only is None:
            raise RecipeError("copies are made of one model", field="copies", expected="one model", got=len(places))
        if copies is None:
            hint = "name several models, or --copies N"
            raise RecipeError("one model makes no experts by itself", field="copies", hint=hint)
        whole = read_whole(require_model(locate(only).folder))
        how = Copies(copies, slices, drop, experts_per_token)
        return written(whole, copied(whole, how, gate or "random", generator), Path(out), format)
    else:
        plan = plan_for(models, base, gate, prompts or {}, experts_per_token)
    if (slices, drop) != (1, 0.0):
        raise RecipeError("slices and drop are for copies of one model", field="slices" if slices != 1 else "drop")
    whole = read_whole(plan.base)
    return written(whole, composed(whole, plan, generator), Path(out), format)


def plan_of(path: Path) -> Plan:
    """The plan of a file of mergekit-moe."""
    moe = read_moe(path)
    parts = [
        Part(
            require_model(locate(one.source_model).folder),
            Prompted(one.positive_prompts or [], one.negative_prompts or []),
            one.noise_scale or 0.0,
            1.0 if one.residual_scale is None else one.residual_scale,
        )
        for one in moe.experts
    ]
    base, gate = require_model(locate(moe.base_model).folder), moe.gate_mode.removesuffix("_last")
    dtype = None if moe.dtype is None else getattr(torch, moe.dtype)
    return Plan(base, parts, gate, moe.experts_per_token, dtype, moe.family)


def plan_for(
    models: Mapping[str, Place] | Sequence[Place],
    base: Place | None,
    gate: str | None,
    prompts: Mapping[str, str | os.PathLike[str]],
    chosen: int,
) -> Plan:
    """The plan of models with these names and files of prompts."""
    pairs = models.items() if isinstance(models, Mapping) else ((name_at(place), place) for place in models)
    found: dict[str, Path] = {}
    for name, place in pairs:
        if name in found:
            raise RecipeError("given twice", field=name, hint="give each model its own name: NAME=PATH")
        found[name] = require_model(locate(place).folder)
    if unknown := sorted({*prompts} - {*found}):
        raise RecipeError("unknown expert", field="prompts", expected=", ".join(found), got=unknown[0])
    gate = gate or ("ridge" if prompts else "random")
    if gate not in RANDOM and (missing := [name for name in found if name not in prompts]):
        hint = "give a file of prompts for every model, or choose the gate 'random'"
        raise RecipeError(f"the gate {gate!r} needs prompts", field="prompts", got=f"none of {missing[0]}", hint=hint)
    read = {name: read_prompts(Path(path))[:MOST] for name, path in prompts.items()}
    parts = [Part(at, Prompted(read.get(name, []))) for name, at in found.items()]
    if not 1 <= chosen <= len(parts):
        expected = f"1 to {len(parts)}"
        raise RecipeError("a token cannot pass so many", field="experts_per_token", expected=expected, got=chosen)
    return Plan(require_model(locate(base).folder) if base is not None else parts[0].at, parts, gate, chosen)


@torch.no_grad()
def composed(base: Whole, plan: Plan, generator: torch.Generator) -> Weights:
    """The sparse model of a plan; warns about what of the models is left out, and about rows that are alike."""
    own = base.weights
    family = require_sparse(own.config)
    if plan.family not in (None, family):
        raise CompatibilityError("the models make another family", path=plan.base, expected=plan.family, got=family)
    dtype = plan.dtype or dtype_of(own)
    experts = []
    for part in plan.parts:
        whole = base if part.at == plan.base else read_whole(part.at)
        require_shape(own.config, whole.weights.config, part.at, "experts have the shape of their base, and this one's")
        require_tokenizer(base.tokenizer, whole.tokenizer, part.at)
        if moved := outside(own, whole.weights):
            text = f"outside its feed-forward blocks it differs from the base, which is left out: {farthest(moved)}"
            warnings.warn(f"{part.at}: {text}", MoesaicWarning, stacklevel=3)
        experts.append(
            {at: matrix.to(dtype) for at, matrix in noisy(blocks_of(whole.weights), part, generator).items()}
        )
    decoder, _ = read_decoder(plan.base, by_default)
    reader = Reader(decoder.eval(), base.tokenizer, generator)
    gates = gate_named(plan.gate)(reader, [part.prompted for part in plan.parts])
    if layers := alike(gates):
        text = f"the rows of {len(layers)} of {len(gates)} layers are so alike that some experts will see few tokens"
        warnings.warn(f"gate {plan.gate!r}: {text}; give prompts that differ more", MoesaicWarning, stacklevel=3)
    rest = Weights(own.config, {name: tensor.to(dtype) for name, tensor in own.tensors.items()})
    return sparse(rest, experts, [rows.to(dtype) for rows in gates], plan.chosen)


def dtype_of(weights: Weights) -> torch.dtype:
    return next(iter(weights.tensors.values())).dtype


def noisy(blocks: Blocks, part: Part, generator: torch.Generator) -> Blocks:
    """Blocks with the noise and the scale of a part."""
    if part.noise:
        blocks = {
            at: matrix + torch.randn(matrix.shape, generator=generator).to(matrix.dtype) * part.noise
            for at, matrix in blocks.items()
        }
    return {at: matrix * part.scale if at[1] == "down" and part.scale != 1 else matrix for at, matrix in blocks.items()}


def outside(base: Weights, other: Weights) -> dict[str, float]:
    """The tensors outside the blocks that differ from the base's, each with its change of its norm."""
    mine = dict(base.outside())
    changed = {name: one for name, one in other.outside() if not one.equal(mine[name])}
    return {
        name: float((one.double() - mine[name].double()).norm() / mine[name].double().norm().clamp_min(1e-12))
        for name, one in changed.items()
    }


# --- copies of one model ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Copies:
    """`count` copies of each block, each cut into `slices`; a token passes `chosen` copies. `drop`: see `upcycle`."""

    count: int
    slices: int = 1
    drop: float = 0.0
    chosen: int = 2

    def __post_init__(self) -> None:
        for field, value, good, expected in (
            ("copies", self.count, self.count >= 1, ">= 1"),
            ("slices", self.slices, self.slices >= 1, ">= 1"),
            ("drop", self.drop, 0 <= self.drop < 1, "0 or more, and below 1"),
            ("experts_per_token", self.chosen, 1 <= self.chosen <= self.count, f"1 to {self.count} copies"),
        ):
            if not good:
                raise RecipeError("out of range", field=field, expected=expected, got=value)


@torch.no_grad()
def copied(base: Whole, how: Copies, gate: str, generator: torch.Generator) -> Weights:
    """The sparse model of copies.

    All slices of a copy have one row of the gate, so a token passes whole copies, and each slice of a copy has the same
    part of the copy's weight: the matrices that lead out of the slices are multiplied by their number.
    """
    own, inner = base.weights, base.weights.config.intermediate_size
    require_sparse(own.config)
    if gate not in RANDOM:
        raise RecipeError("copies have no prompts", field="gate", expected=" or ".join(RANDOM), got=gate)
    if inner % how.slices:
        expected = f"a divisor of the inner size {inner}"
        raise RecipeError("blocks cannot be cut evenly", field="slices", expected=expected, got=how.slices)
    blocks, experts = blocks_of(own), list[Blocks]()
    for _ in range(how.count):
        copy = redrawn(blocks, own.config.num_layers, how.drop, generator) if how.drop else blocks
        experts += [sliced(copy, index, how.slices) for index in range(how.slices)]
    width, dtype = own.config.hidden_size, dtype_of(own)
    rows = [RANDOM[gate](how.count, width, generator) for _ in range(own.config.num_layers)]
    gates = [one.repeat_interleave(how.slices, 0).to(dtype) for one in rows]
    return sparse(own, experts, gates, how.chosen * how.slices)


def redrawn(blocks: Blocks, layers: int, share: float, generator: torch.Generator) -> Blocks:
    """Blocks with this share of the inner columns drawn from normal numbers of the columns' own mean and deviation."""
    made = {at: matrix.clone() for at, matrix in blocks.items()}
    for layer in range(layers):
        inner = blocks[layer, "gate"].shape[0]
        some = torch.randperm(inner, generator=generator)[: round(share * inner)]
        for kind in MATRICES:
            matrix = made[layer, kind]
            view = matrix.t() if kind == "down" else matrix
            old = view[some].float()
            drawn = torch.randn(old.shape, generator=generator) * old.std() + old.mean()
            view[some] = drawn.to(matrix.dtype)
    return made


def sliced(blocks: Blocks, index: int, slices: int) -> Blocks:
    """One of several slices of the inner columns."""

    def cut(kind: str, matrix: Tensor) -> Tensor:
        part = matrix.chunk(slices, 1 if kind == "down" else 0)[index]
        return part * slices if kind == "down" and slices > 1 else part

    return {(layer, kind): cut(kind, matrix) for (layer, kind), matrix in blocks.items()}


# --- written ----------------------------------------------------------------------------------------------------------


def written(base: Whole, made: Weights, out: Path, format: str | None) -> Path:
    """Write a sparse model in a format of its family, read back."""
    known = {word: layout for word, (family, layout) in LAYOUTS.items() if family == made.config.family}
    word = format or next(iter(known))
    if word not in known:
        what, expected = "the models make no such format", " or ".join(known)
        raise RecipeError(what, field="format", expected=expected, got=word)
    return write_whole(replace(base, weights=made), out, known[word](made.config.family, made.tensors))
