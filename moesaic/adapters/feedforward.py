"""Feed-forward experts: whole gated blocks beside a base's own, applied row by row under Gates.

`attach` puts the stacked blocks of several experts into the ffn slots of a decoder. The base's block replaces a missing
one and gets the rest of a row's weights up to 1: a row that abstains gets the base.
Knows nothing about files, training or routers.
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

FFNBlock = tuple[Float[Tensor, "i d"], Float[Tensor, "i d"], Float[Tensor, "i d"]]


@dataclass(frozen=True)
class FFN:
    """One expert: for each module path (`layers.N.mlp`) its gate, up and down, all of them (i, d).

    `down` is the transpose of its form in checkpoints, so that stacks of experts multiply without a copy. An expert may
    lack a block in some layers.
    """

    blocks: Mapping[str, FFNBlock]

    @property
    def layers(self) -> list[int]:
        return layers_in(self.blocks)

    @property
    def num_parameters(self) -> int:
        return sum(part.numel() for block in self.blocks.values() for part in block)

    @staticmethod
    def of(decoder: nn.Module, layers: range) -> "FFN":
        """Copy a decoder's own blocks in these layers, for the training of an expert to start from."""
        found = {path: block for path, block in ffns(decoder).items() if layers_in([path])[0] in layers}
        if not found:
            raise CompatibilityError("the base has no such layers", field="layers", got=str(layers))
        return FFN({path: block_of(require_glu(block, path)) for path, block in found.items()})


class MixedFFN(nn.Module):
    """sum_e w_e expert_e(x) + (1 - sum_e w_e) base(x): the ffn slot with the blocks of several experts.

    `experts`: the columns of the gates that the stacked blocks belong to; the weights of all others go to the base.
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
        if sizes.count(0) == own:  # all rows chose the same expert
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
        # unbind, as the backward of indexing would fill a gradient of the whole stack for each expert
        blocks = list(zip(self.gate.unbind(), self.up.unbind(), self.down.unbind(), strict=True))
        return added(y, x, groups, blocks, own, self.base), None


class FetchedFFN(nn.Module):
    """The sum of `MixedFFN`, with blocks in memory only while they are needed: `blocks`, by index into `experts`.

    The caller has loaded the blocks of all experts that have a row.
    """

    def __init__(self, base: GLU, experts: tuple[int, ...]):
        super().__init__()
        self.base, self.experts = base, experts
        self.blocks: dict[int, FFNBlock] = {}

    def forward(self, x: Float[Tensor, "n t d"], gates: Gates | None) -> tuple[Float[Tensor, "n t d"], Routing | None]:
        shares = require(gates, x).with_base(self.experts)
        groups, own = list(shares.groups()), len(self.experts)
        if len(groups) == 1:  # all rows chose the same expert
            only, _, weights = groups[0]
            if only == own:
                return self.base(x, None)
            return glu.block(x, *self.blocks[only], self.base.act, weights), None
        return added(torch.zeros_like(x), x, groups, self.blocks, own, self.base), None


def added(
    y: Float[Tensor, "n t d"],
    x: Float[Tensor, "n t d"],
    groups: list[tuple[int, Tensor, Tensor]],
    blocks: Sequence[FFNBlock] | Mapping[int, FFNBlock],
    own: int,
    base: GLU,
) -> Float[Tensor, "n t d"]:
    """Add the weighted output of each group (expert, rows, weights) to `y`; group `own` is the base's."""
    for expert, rows, weights in groups:
        if expert == own:
            part = base(x[rows], None)[0] * weights[:, None, None]
        else:
            part = glu.block(x[rows], *blocks[expert], base.act, weights)
        y = y.index_add(0, rows, part.to(y.dtype))
    return y


def attach(decoder: nn.Module, experts: list[FFN]) -> None:
    """Put the experts, in this order, beside the feed-forward blocks of `decoder` that any of them has."""
    for path, base, holders in slots_for(decoder, experts):
        like = base.gate_proj.weight
        stacks = [like.new_empty(len(holders), *like.shape) for _ in range(3)]
        with torch.no_grad():
            for row, index in enumerate(holders):
                for stack, part in zip(stacks, experts[index].blocks[path], strict=True):
                    stack[row] = part
        fill(decoder, path, MixedFFN(base, holders, *stacks))


def reserve(decoder: nn.Module, experts: list[FFN]) -> None:
    """Prepare empty slots for the experts, in this order, to be filled by `put` and emptied by `take`."""
    for path, base, holders in list(slots_for(decoder, experts)):
        fill(decoder, path, FetchedFFN(base, holders))


def put(decoder: nn.Module, index: int, expert: FFN) -> None:
    """Put the blocks of the expert with this index into the slots that `reserve` prepared, without copying."""
    slots = slots_of(decoder, FetchedFFN)
    for path, block in expert.blocks.items():
        slots[path].blocks[slots[path].experts.index(index)] = block


def take(decoder: nn.Module, index: int, paths: Collection[str]) -> None:
    slots = slots_of(decoder, FetchedFFN)
    for path in paths:
        slots[path].blocks.pop(slots[path].experts.index(index), None)


def groups(decoder: nn.Module) -> frozenset[tuple[int, ...]]:
    """The columns of the gates that the feed-forward slots of a decoder read, for `Gates.ready`."""
    mixed = {slot.experts for slot in slots_of(decoder, MixedFFN).values()}
    return frozenset(mixed | {slot.experts for slot in slots_of(decoder, FetchedFFN).values()})


def fill(decoder: nn.Module, path: str, slot: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(decoder.get_submodule(parent), name, slot)


def slots_for(decoder: nn.Module, experts: list[FFN]) -> Iterator[tuple[str, GLU, tuple[int, ...]]]:
    """Yield each block of `decoder` that any of the experts has: path, block, and indices of experts that have it."""
    for path in sorted({path for expert in experts for path in expert.blocks}):
        base = block_at(decoder, path)
        wanted = tuple(base.gate_proj.weight.shape)
        holders = tuple(index for index, expert in enumerate(experts) if path in expert.blocks)
        for index in holders:
            for name, part in zip(("gate", "up", "down"), experts[index].blocks[path], strict=True):
                if tuple(part.shape) != wanted:
                    what, got = "the expert was made for another base", str(list(part.shape))
                    raise CompatibilityError(what, field=f"{path}.{name}", expected=str(list(wanted)), got=got)
        yield path, base, holders


def attached(decoder: nn.Module, index: int) -> FFN:
    """The expert with this index among those that `attach` put into a decoder, as views of the stacks."""
    blocks: dict[str, FFNBlock] = {}
    for path, slot in slots_of(decoder, MixedFFN).items():
        if index in slot.experts:
            row = slot.experts.index(index)
            blocks[path] = slot.gate[row].detach(), slot.up[row].detach(), slot.down[row].detach()
    return FFN(blocks)


def ffns(decoder: nn.Module) -> dict[str, nn.Module]:
    return {path: part for path, part in decoder.named_modules() if path.endswith(".mlp")}


def block_at(decoder: nn.Module, path: str) -> GLU:
    """The decoder's own block at this path; CompatibilityError unless experts can stand beside it."""
    slots = ffns(decoder)
    if path not in slots:
        raise CompatibilityError("the base has no such feed-forward block", field=path)
    return require_glu(slots[path], path)


@singledispatch
def require_glu(slot: nn.Module, path: str) -> GLU:
    """Return the filling if it is a dense gated block without biases; raise CompatibilityError otherwise."""
    raise CompatibilityError("the module already carries experts", field=path)


@require_glu.register(SparseFFN)
def _(slot: SparseFFN, path: str) -> GLU:
    what, hint = "the base's feed-forward block is sparse", "experts of kind ffn need a dense base"
    raise CompatibilityError(what, field=path, expected="one gated block", got="a mixture of experts", hint=hint)


@require_glu.register(GLU)
def _(slot: GLU, path: str) -> GLU:
    if slot.gate_proj.bias is not None:
        hint = "use whole models (kind model), or adapters"
        raise CompatibilityError("experts of kind ffn have no biases, but the base's block has", field=path, hint=hint)
    return slot


def block_of(slot: GLU) -> FFNBlock:
    gate, up, down = (
        part.detach().clone(memory_format=torch.contiguous_format)
        for part in (slot.gate_proj.weight, slot.up_proj.weight, slot.down_proj.weight.t())
    )
    return gate, up, down
