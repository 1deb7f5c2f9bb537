"""LoRA beside the matrices of a base's sparse experts: each sequence's own adapters times each token's own experts.

An adapter has a pair for each matrix that it changes, by paths such as `layers.0.mlp.experts.3.down_proj`; the change
of a whole matrix is never formed. `gate_up_proj` names gate and up of an expert as one matrix, as they lie in memory.
Knows nothing about files or training.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Int32
from torch import Tensor, nn

from moesaic.adapters.slots import slots_of
from moesaic.nn.sparse import Asked, Experts
from moesaic.ops import low_rank
from moesaic.ops.grouped import grouped
from moesaic.routing import Gates, require

WHOLE, HALVES, DOWN = "gate_up_proj", ("gate_proj", "up_proj"), "down_proj"
NAMES = (WHOLE, *HALVES, DOWN)
INSIDE = re.compile(rf"(.*\.experts)\.(\d+)\.({'|'.join(NAMES)})")

FEW = 64
"""Up to this many rows, products of gathered pairs beat products of groups."""


class Place(NamedTuple):
    """A matrix of a sparse expert: the path of the layer's experts, the expert's number, the name of the matrix."""

    experts: str
    number: int
    name: str


def place(path: str) -> Place | None:
    """The place of a sparse expert's matrix; None for any other path."""
    match = INSIDE.fullmatch(path)
    return Place(match[1], int(match[2]), match[3]) if match else None


def placed(paths: Iterable[str]) -> dict[str, dict[str, dict[int, str]]]:
    """Paths of matrices of sparse experts, by their layer's experts, name and number; other paths are left out."""
    found: dict[str, dict[str, dict[int, str]]] = {}
    for path in paths:
        if at := place(path):
            found.setdefault(at.experts, {}).setdefault(at.name, {})[at.number] = path
    return found


def matrices(module: nn.Module) -> dict[str, Float[Tensor, "o i"]]:
    """The matrices of sparse experts by path, as views; gate and up also together."""
    found = {}
    for path, experts in slots_of(module, Experts).items():
        for number, (both, down) in enumerate(zip(experts.gate_up_proj, experts.down_proj, strict=True)):
            for name, weight in zip(NAMES, (both, *both.chunk(2), down), strict=True):
                found[f"{path}.{number}.{name}"] = weight
    return found


class Stack(nn.Module):
    """The pairs of n adapters beside one matrix of each of e experts."""

    scale: Tensor

    def __init__(self, a: Float[Tensor, "n e r i"], b: Float[Tensor, "n e r o"], scale: Float[Tensor, "n e"]):
        super().__init__()
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)
        self.register_buffer("scale", scale, persistent=False)


class LowRankExperts(nn.Module):
    """The experts of a layer with the pairs of several adapters; without a row that chose one, the base alone."""

    def __init__(self, base: Experts, stacks: Mapping[str, Stack]):
        super().__init__()
        self.base, self.stacks = base, nn.ModuleDict(stacks)

    @property
    def dtype(self) -> torch.dtype:
        return self.base.dtype

    def forward(self, x: Float[Tensor, "m d"], asked: Asked, gates: Gates | None) -> Float[Tensor, "m d"]:
        gates = require(gates, x.unflatten(0, (-1, asked.rows)))
        if not len(gates.rows):
            return self.base(x, asked, gates)
        choices = Choices(gates, asked)
        both = self.added(WHOLE, grouped(x, self.base.gate_up_proj, asked.ends), x, choices)
        gate, up = (self.added(*part, x, choices) for part in zip(HALVES, both.chunk(2, -1), strict=True))
        inner = self.base.act(gate) * up
        return self.added(DOWN, grouped(inner, self.base.down_proj, asked.ends), inner, choices)

    def added(
        self, name: str, y: Float[Tensor, "m o"], x: Float[Tensor, "m i"], choices: "Choices"
    ) -> Float[Tensor, "m o"]:
        """Add to the products with a matrix what the adapters change in them, in the type of the adapters."""
        if name not in self.stacks:
            return y
        stack: Stack = self.stacks[name]  # type: ignore[assignment]
        return choices.added(y.to(stack.a.dtype), x.to(stack.a.dtype), stack).to(y.dtype)


@dataclass(frozen=True)
class Choices:
    """The adapters of the sequences, for rows that are sorted by expert."""

    gates: Gates
    asked: Asked

    def added(self, y: Float[Tensor, "m o"], x: Float[Tensor, "m i"], stack: Stack) -> Float[Tensor, "m o"]:
        """y + sum_a w_a (x A_a^T) B_a, where A_a and B_a are the pair of adapter a for the expert of the row."""
        few, single = len(x) <= FEW, self.single
        a, b, scale = stack.a.flatten(0, 1), stack.b.flatten(0, 1), stack.scale.flatten()
        if single and few:
            index, values = single
            return low_rank.each(y[:, None], x[:, None], a, b, index, values * scale.index_select(0, index))[:, 0]
        if single and self.only is not None:
            index, values = single
            values = values * scale.index_select(0, index)
            return y + low_rank.of_groups(x, stack.a[self.only], stack.b[self.only], self.asked.ends, values)
        rows, index, values, ends = self.pairs
        values = values * scale.index_select(0, index)
        if few:
            return low_rank.gathered(y[:, None], x[:, None], a, b, rows, index, values)[:, 0]
        return y.index_add(0, rows, low_rank.of_groups(x.index_select(0, rows), a, b, ends, values).to(y.dtype))

    @property
    def only(self) -> int | None:
        """The one adapter that rows chose, if the host knows that there is one."""
        present = self.gates.present if self.gates.sizes is not None else ()
        return present[0] if len(present) == 1 else None

    @cached_property
    def single(self) -> tuple[Int[Tensor, " m"], Float[Tensor, " m"]] | None:
        """Where each row has one adapter: the index of the row's pair in a flat stack, and its weight."""
        sequences, count = self.asked.order // self.asked.rows, len(self.asked.ends)
        if self.only is not None:
            weights = self.gates.weights[:, self.only]
            return self.asked.experts + self.only * count, weights.index_select(0, sequences)
        if self.gates.each is None:
            return None
        adapters, weights = (part.index_select(0, sequences) for part in self.gates.each)
        return adapters * count + self.asked.experts, weights

    @cached_property
    def pairs(
        self,
    ) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"], Float[Tensor, " p"], Int32[Tensor, " ae"]]:
        """The pairs of a row and an adapter, sorted by adapter and expert: row, index in a flat stack, weight; and
        where the pairs of each index end.
        """
        gates, order, rows, count = self.gates, self.asked.order, self.asked.rows, len(self.asked.ends)
        back = torch.empty_like(order).scatter(0, order, torch.arange(len(order), device=order.device))
        found = back.view(-1, rows).index_select(0, gates.rows).flatten()
        adapters = gates.experts.repeat_interleave(rows)
        pairs, sorting = (adapters * count + self.asked.experts.index_select(0, found)).sort(stable=True)
        every = torch.arange(gates.num_experts * count, device=pairs.device)
        ends = torch.searchsorted(pairs, every, right=True, out_int32=True)
        values = gates.values.repeat_interleave(rows)
        return found.index_select(0, sorting), pairs, values.index_select(0, sorting), ends
