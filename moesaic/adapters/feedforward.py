"""Feed-forward experts: whole gated blocks beside a base's own, applied row by row under Gates.

`attach` puts the stacked blocks of several experts into the ffn slots of a decoder. Where an expert has no block, the
base's stands for it, and what a row's weights leave of 1 is the base's too: a row that abstains gets the base.
Knows nothing about files, training or who chose the experts.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import singledispatch

import torch
from jaxtyping import Float
from torch import Tensor, nn

from moesaic.adapters.lora import layers_in
from moesaic.adapters.slots import slots_of
from moesaic.errors import CompatibilityError
from moesaic.nn import GLU, SparseFFN
from moesaic.ops import glu
from moesaic.routing import Gates, Routing, require

Block = tuple[Float[Tensor, "i d"], Float[Tensor, "i d"], Float[Tensor, "i d"]]


@dataclass(frozen=True)
class FFN:
    """One expert: for each module path (`layers.N.mlp`) its gate, up and down, all of them (i, d).

    `down` is kept as (i, d), the transpose of how checkpoints store it, so that stacks of experts multiply without a
    copy. An expert need not have a block in every layer.
    """

    blocks: Mapping[str, Block]

    @property
    def layers(self) -> list[int]:
        return layers_in(self.blocks)

    @property
    def num_parameters(self) -> int:
        return sum(part.numel() for block in self.blocks.values() for part in block)

    @staticmethod
    def of(decoder: nn.Module, layers: range) -> "FFN":
        """Copies of a decoder's own blocks in these layers: what the training of an expert starts from."""
        found = {path: block for path, block in ffns(decoder).items() if layers_in([path])[0] in layers}
        if not found:
            raise CompatibilityError("the base has no such layers", field="layers", got=str(layers))
        return FFN({path: block_of(require_glu(block, path)) for path, block in found.items()})


class MixedFFN(nn.Module):
    """sum_e w_e expert_e(x) + (1 - sum_e w_e) base(x): the ffn slot with the blocks of several experts.

    `experts`: which columns of the gates the stacked blocks belong to; the weights of all others are the base's here.
    """

    def __init__(
        self,
        base: GLU,
        experts: tuple[int, ...],
        gate: Float[Tensor, "e i d"],
        up: Float[Tensor, "e i d"],
        down: Float[Tensor, "e i d"],
    ):
        super().__init__()
        self.base, self.experts = base, experts
        self.gate, self.up, self.down = nn.Parameter(gate), nn.Parameter(up), nn.Parameter(down)

    def forward(self, x: Float[Tensor, "n t d"], gates: Gates | None) -> tuple[Float[Tensor, "n t d"], Routing | None]:
        shares = require(gates, x).with_base(self.experts)
        sizes, own, act = shares.host_sizes(), len(self.experts), self.base.act
        if sizes.count(0) == own:  # all rows chose the same one
            if sizes[own]:
                return self.base(x, None)
            only = next(expert for expert, size in enumerate(sizes) if size)
            parts = self.gate[only], self.up[only], self.down[only]
            return glu.block(x, *parts, act, shares.weights[:, only]), None
        groups = list(shares.groups())
        if all(size == len(x) for size in sizes[:own]):  # every row has a weight for every expert
            y = glu.blended(x, self.gate, self.up, self.down, act, shares.weights[:, :own])
            groups = groups[own:]
        else:
            y = torch.zeros_like(x)
        # unbound, not indexed: the backward of that fills one gradient of a stack, not one for each expert
        blocks = list(zip(self.gate.unbind(), self.up.unbind(), self.down.unbind(), strict=True))
        return added(y, x, groups, blocks, own, self.base), None


class FetchedFFN(nn.Module):
    """The same sum, with blocks that are there only while they are needed: `blocks`, by place among `experts`.

    Whoever calls it has put those blocks there whose experts have a row.
    """

    def __init__(self, base: GLU, experts: tuple[int, ...]):
        super().__init__()
        self.base, self.experts = base, experts
        self.blocks: dict[int, Block] = {}

    def forward(self, x: Float[Tensor, "n t d"], gates: Gates | None) -> tuple[Float[Tensor, "n t d"], Routing | None]:
        shares = require(gates, x).with_base(self.experts)
        groups, own = list(shares.groups()), len(self.experts)
        if len(groups) == 1:  # all rows chose the same one
            only, _, weights = groups[0]
            if only == own:
                return self.base(x, None)
            return glu.block(x, *self.blocks[only], self.base.act, weights), None
        return added(torch.zeros_like(x), x, groups, self.blocks, own, self.base), None


Group = tuple[int, Tensor, Tensor]
"""An expert, its rows and their weights."""


def added(
    y: Float[Tensor, "n t d"],
    x: Float[Tensor, "n t d"],
    groups: list[Group],
    blocks: Sequence[Block] | Mapping[int, Block],
    own: int,
    base: GLU,
) -> Float[Tensor, "n t d"]:
    """`y`, and what each group of rows gets from its block, weighted; group `own` is the base's."""
    for expert, rows, weights in groups:
        if expert == own:
            part = base(x[rows], None)[0] * weights[:, None, None]
        else:
            part = glu.block(x[rows], *blocks[expert], base.act, weights)
        y = y.index_add(0, rows, part)
    return y


def attach(decoder: nn.Module, experts: list[FFN]) -> None:
    """Put the experts, in this order, beside the feed-forward blocks of `decoder` that any of them has."""
    for path, base, holders in places(decoder, experts):
        like = base.gate_proj.weight
        stacks = [like.new_empty(len(holders), *like.shape) for _ in range(3)]
        with torch.no_grad():
            for row, place in enumerate(holders):
                for stack, part in zip(stacks, experts[place].blocks[path], strict=True):
                    stack[row] = part
        fill(decoder, path, MixedFFN(base, holders, *stacks))


def reserve(decoder: nn.Module, experts: list[FFN]) -> None:
    """Make places for the experts, in this order, as `attach` does, and leave them empty: see `put` and `take`."""
    for path, base, holders in list(places(decoder, experts)):
        fill(decoder, path, FetchedFFN(base, holders))


def put(decoder: nn.Module, place: int, expert: FFN) -> None:
    """Have an expert's blocks where `reserve` made its place; nothing is copied."""
    slots = slots_of(decoder, FetchedFFN)
    for path, block in expert.blocks.items():
        slots[path].blocks[slots[path].experts.index(place)] = block


def take(decoder: nn.Module, place: int, paths: Collection[str]) -> None:
    """Remove an expert's blocks from the slots at these paths."""
    slots = slots_of(decoder, FetchedFFN)
    for path in paths:
        slots[path].blocks.pop(slots[path].experts.index(place), None)


def groups(decoder: nn.Module) -> frozenset[tuple[int, ...]]:
    """The columns of the gates that the feed-forward slots of a decoder read: see `Gates.ready`."""
    mixed = {slot.experts for slot in slots_of(decoder, MixedFFN).values()}
    return frozenset(mixed | {slot.experts for slot in slots_of(decoder, FetchedFFN).values()})


def fill(decoder: nn.Module, path: str, slot: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(decoder.get_submodule(parent), name, slot)


def places(decoder: nn.Module, experts: list[FFN]) -> Iterator[tuple[str, GLU, tuple[int, ...]]]:
    """Each block of `decoder` that any of the experts has, by path, and which of them have it, of its sizes."""
    slots = ffns(decoder)
    for path in sorted({path for expert in experts for path in expert.blocks}):
        if path not in slots:
            raise CompatibilityError("the base has no such feed-forward block", field=path)
        base = require_glu(slots[path], path)
        wanted = tuple(base.gate_proj.weight.shape)
        holders = tuple(place for place, expert in enumerate(experts) if path in expert.blocks)
        for place in holders:
            for name, part in zip(("gate", "up", "down"), experts[place].blocks[path], strict=True):
                if tuple(part.shape) != wanted:
                    what, got = "the expert was made for another base", str(list(part.shape))
                    raise CompatibilityError(what, field=f"{path}.{name}", expected=str(list(wanted)), got=got)
        yield path, base, holders


def standing(decoder: nn.Module, place: int) -> FFN:
    """The expert in this place among those that `attach` put into a decoder; its tensors are those of the stacks."""
    slots = slots_of(decoder, MixedFFN)
    rows = {path: slot.experts.index(place) for path, slot in slots.items() if place in slot.experts}
    stacks = {path: (slots[path].gate.detach(), slots[path].up.detach(), slots[path].down.detach()) for path in rows}
    return FFN(
        {path: (gate[rows[path]], up[rows[path]], down[rows[path]]) for path, (gate, up, down) in stacks.items()}
    )


def ffns(decoder: nn.Module) -> dict[str, nn.Module]:
    """What fills the ffn slots of a decoder, by path."""
    return {path: part for path, part in decoder.named_modules() if path.endswith(".mlp")}


@singledispatch
def require_glu(slot: nn.Module, path: str) -> GLU:
    """The slot's filling, if it is a dense gated block without biases that nothing stands beside yet."""
    raise CompatibilityError("the module already carries experts", field=path)


@require_glu.register(SparseFFN)
def _(slot: SparseFFN, path: str) -> GLU:
    what, hint = "the base's feed-forward block is sparse already", "experts of kind ffn need a dense base"
    raise CompatibilityError(what, field=path, expected="one gated block", got="a mixture of its own", hint=hint)


@require_glu.register(GLU)
def _(slot: GLU, path: str) -> GLU:
    if slot.gate_proj.bias is not None:
        hint = "use whole models (kind model), or adapters"
        raise CompatibilityError("experts of kind ffn have no biases, and the base's block has", field=path, hint=hint)
    return slot


def block_of(slot: GLU) -> Block:
    """A copy of a dense block, in the layout of experts."""
    return copied(slot.gate_proj.weight, slot.up_proj.weight, slot.down_proj.weight.t())


def copied(gate: Float[Tensor, "i d"], up: Float[Tensor, "i d"], down: Float[Tensor, "i d"]) -> Block:
    return tuple(part.detach().clone(memory_format=torch.contiguous_format) for part in (gate, up, down))  # type: ignore[return-value]
