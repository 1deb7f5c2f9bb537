"""Dense models <-> sparse ones, as configurations and tensors under the names of their families.

A sparse model has in each layer several feed-forward blocks and a matrix that routes every token. Knows nothing about
files, nor where the rows of that matrix come from.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from moesaic.config import TRAITS, DecoderConfig
from moesaic.errors import CompatibilityError
from moesaic.interop.families import stored_name
from moesaic.interop.layouts import plain

SPARSE = {"llama": "mixtral", "mistral": "mixtral", "qwen2": "qwen2_moe", "qwen3": "qwen3_moe"}
"""Dense family -> the sparse one with the same attention."""
MATRICES = ("gate", "up", "down")
Blocks = dict[tuple[int, str], Tensor]
"""The matrices of a model's feed-forward blocks by layer and kind."""
SIZED = ("qwen2_moe", "qwen3_moe")
"""Families that tell the size of an expert apart from that of a dense block."""
SHARED = 64
"""Inner columns of the shared expert of a model that has to have one: its output is 0 until it is trained."""


@dataclass(frozen=True)
class Weights:
    """A model: its configuration, and its tensors under the names of its family, without a tied head."""

    config: DecoderConfig
    tensors: Mapping[str, Tensor]

    def matrix(self, layer: int, kind: str, expert: int | None = None) -> Tensor:
        """A matrix of a feed-forward block: `gate`, `up` or `down`."""
        inside = "" if expert is None else f"experts.{expert}."
        return self.tensors[stored_name(self.config.family, f"layers.{layer}.mlp.{inside}{kind}_proj.weight")]

    def outside(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors outside the feed-forward blocks, under the names of the dense families."""
        for name, tensor in self.tensors.items():
            if ".mlp." not in (own := plain(self.config.family, name)):
                yield own, tensor


def blocks_of(weights: Weights) -> Blocks:
    """The matrices of a dense model's feed-forward blocks."""
    layers = range(weights.config.num_layers)
    return {(layer, kind): weights.matrix(layer, kind) for layer in layers for kind in MATRICES}


def require_sparse(config: DecoderConfig) -> str:
    """The sparse family of a dense model; CompatibilityError where no program has one."""
    if config.family not in SPARSE:
        what = "no sparse family has this model's attention and norms"
        expected, hint = f"a model of {', '.join(SPARSE)}", "join such models as a mixture by `moesaic adopt`"
        raise CompatibilityError(what, field="model_type", expected=expected, got=config.family, hint=hint)
    for field in ("qkv_bias", "attention_bias", "mlp_bias"):
        if getattr(config, field) and not TRAITS[SPARSE[config.family]].get(field):
            what = f"{SPARSE[config.family]} has no such biases"
            raise CompatibilityError(what, field=field, expected=False, got=True)
    return SPARSE[config.family]


def sparse(
    base: Weights, experts: Sequence[Mapping[tuple[int, str], Tensor]], gates: Sequence[Tensor], chosen: int
) -> Weights:
    """A sparse model: all but the feed-forward blocks from `base`, for each expert the matrices by layer and kind.

    `gates`: of each layer, a row for each expert. `chosen`: experts that a token passes; their weights sum to 1.
    """
    family, config = require_sparse(base.config), base.config
    size = experts[0][0, "gate"].shape[0]
    tensors = dict(base.outside())
    for layer in range(config.num_layers):
        tensors[stored_name(family, f"layers.{layer}.mlp.gate.weight")] = gates[layer]
        for index, blocks in enumerate(experts):
            for kind in MATRICES:
                at = stored_name(family, f"layers.{layer}.mlp.experts.{index}.{kind}_proj.weight")
                tensors[at] = blocks[layer, kind]
    sizes: dict[str, Any] = {"num_experts": len(experts), "experts_per_token": chosen, "renormalise": True}
    own: dict[str, Any] = {"expert_size": size} if family in SIZED else {"intermediate_size": size}
    if family == "qwen2_moe":
        own["shared_size"] = min(SHARED, config.intermediate_size)
        tensors |= silent(base, own["shared_size"], gates[0].dtype)
    return Weights(replace(config, family=family, **sizes, **own), tensors)


def silent(base: Weights, size: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """A shared expert of each layer that adds 0: a part of the base's block, whose way out is 0 and can be trained."""
    found: dict[str, Tensor] = {}
    for layer in range(base.config.num_layers):
        at = f"model.layers.{layer}.mlp.shared_expert"
        gate, up = (base.matrix(layer, kind)[:size].to(dtype).clone() for kind in ("gate", "up"))
        found |= {f"{at}.gate_proj.weight": gate, f"{at}.up_proj.weight": up}
        found |= {f"{at}.down_proj.weight": gate.new_zeros(gate.shape[1], size)}
        found[f"{at}_gate.weight"] = gate.new_zeros(1, gate.shape[1])
    return found


def dense(model: Weights, expert: int) -> Weights:
    """The dense model with the blocks of one expert of a sparse one, in every layer that is sparse."""
    config = model.config
    if not config.num_experts:
        raise CompatibilityError("a dense model has no experts to take out", field="num_experts", got=0)
    if not 0 <= expert < config.num_experts:
        expected = f"0 to {config.num_experts - 1}"
        raise CompatibilityError("no such expert", field="expert", expected=expected, got=expert)
    if config.dense_layers:
        what = "some layers are dense, with blocks of another size"
        raise CompatibilityError(what, field="mlp_only_layers", got=str(config.dense_layers))
    if any(name.endswith("shared_expert.down_proj.weight") and tensor.any() for name, tensor in model.tensors.items()):
        what, hint = "every token passes a shared expert, which a dense model lacks", "export it as qwen2-moe"
        raise CompatibilityError(what, field="shared_expert", hint=hint)
    families = {sparse: dense for dense, sparse in SPARSE.items() if dense != "mistral" or config.window}
    family = families[config.family]
    tensors = dict(model.outside())
    for layer in range(config.num_layers):
        for kind in MATRICES:
            at = stored_name(family, f"layers.{layer}.mlp.{kind}_proj.weight")
            tensors[at] = model.matrix(layer, kind, expert)
    none: dict[str, Any] = {"num_experts": 0, "experts_per_token": 0, "expert_size": 0, "renormalise": True}
    none["shared_size"] = 0
    size = config.expert_size or config.intermediate_size
    return Weights(replace(config, family=family, intermediate_size=size, **none), tensors)
