"""Feed-forward experts that every token chooses by itself: the ffn slot with the blocks of several experts and a gate.

Rows may still be given to one expert or to the base as a whole: the gates that come down say so.
Knows nothing about files, training or routers.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from moesaic.adapters.feedforward import FFN, FFNBlock, block_of, fill, slots_for
from moesaic.adapters.slots import slots_of
from moesaic.config import DecoderConfig
from moesaic.errors import CompatibilityError
from moesaic.nn import GLU, SparseFFN
from moesaic.ops import glu
from moesaic.routing import Gates, Routing, require


def columns(num_experts: int) -> tuple[int, ...]:
    """The columns of gates for such slots: every expert, and last the slot's own gate; the base gets the rest."""
    return tuple(range(num_experts + 1))


class TokenFFN(nn.Module):
    """The base's block, and beside it experts of which a gate chooses a few for each token.

    Without gates every token is routed here. With gates, rows of the last column are routed here, and the others get
    the weighted sum of whole experts and the base.
    """

    def __init__(self, base: GLU, sparse: SparseFFN):
        super().__init__()
        self.base, self.sparse = base, sparse

    def forward(self, x: Float[Tensor, "n t d"], gates: Gates | None) -> tuple[Float[Tensor, "n t d"], Routing | None]:
        """The Routing of all tokens; None where not all rows are routed here."""
        own = self.sparse.num_experts
        if gates is None:
            return self.sparse(x, None)
        shares = require(gates, x).with_base(columns(own))
        groups = list(shares.groups())
        if [expert for expert, _, _ in groups] == [own]:
            return self.sparse(x, None)
        y = torch.zeros_like(x)
        for expert, rows, weights in groups:
            y = y.index_add(0, rows, self.part(expert, x[rows], weights))
        return y, None

    def part(self, expert: int, x: Float[Tensor, "g t d"], weights: Float[Tensor, " g"]) -> Float[Tensor, "g t d"]:
        """What a column adds to some rows."""
        own = self.sparse.num_experts
        if expert >= own:
            return (self.sparse if expert == own else self.base)(x, None)[0] * weights[:, None, None]
        experts = self.sparse.experts
        gate, up = experts.gate_up_proj[expert].chunk(2)
        return glu.block(x, gate, up, experts.down_proj[expert].t(), self.base.act, weights)


def attached(decoder: nn.Module, expert: FFN, index: int) -> FFN | None:
    """An expert as views of the stacks that `attach` filled with it; None where it has filled no slot."""
    slots = slots_of(decoder, TokenFFN)

    def block(path: str) -> FFNBlock:
        experts = slots[path].sparse.experts
        gate, up = experts.gate_up_proj[index].detach().chunk(2)
        return gate, up, experts.down_proj[index].detach().t()

    return FFN({path: block(path) for path in expert.blocks}) if slots else None


def attach(
    decoder: nn.Module,
    config: DecoderConfig,
    experts: Sequence[FFN],
    rows: Mapping[str, Float[Tensor, "e d"]],
    chosen: int,
    renormalise: bool = True,
    disabled: Collection[int] = (),
    balanced: bool = False,
) -> None:
    """Put experts, in this order, into the slots where any of them has a block; the base's replaces a missing one.

    `rows`: of the gate of each slot, by its path. `disabled`: experts that no token chooses. `balanced`: the choice has
    a bias, of 0, for a training to move.
    """
    sizes = replace(
        config, num_experts=len(experts), experts_per_token=chosen, renormalise=renormalise, balance_bias=balanced
    )
    for path, base, _ in list(slots_for(decoder, [*experts])):
        if path not in rows:
            what, hint = "the router has no gate for the blocks of a layer", "train the router again"
            raise CompatibilityError(what, field=path, expected=", ".join(rows), hint=hint)
        like = base.gate_proj.weight
        slot = SparseFFN(replace(sizes, intermediate_size=like.shape[0], expert_size=0)).to(like)
        with torch.no_grad():
            for index, expert in enumerate(experts):
                gate, up, down = expert.blocks.get(path) or block_of(base)
                slot.experts.gate_up_proj[index] = torch.cat([gate, up])
                slot.experts.down_proj[index] = down.t()
            slot.gate.weight.copy_(rows[path])
        if disabled:
            silent = like.new_zeros(len(experts)).index_fill(0, torch.tensor([*disabled]), -torch.inf)
            slot.gate.bias = nn.Parameter(silent, requires_grad=False)
        fill(decoder, path, TokenFFN(base, slot))
