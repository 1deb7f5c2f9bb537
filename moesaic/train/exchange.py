"""Experts of sparse layers that lie in several processes: tokens travel to their experts, and the outputs back.

Knows nothing about routers: a layer sorts its tokens by expert, and does not know where an expert lies.
"""

from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from moesaic.adapters.slots import slots_of
from moesaic.errors import RecipeError
from moesaic.model.decoder import Decoder
from moesaic.nn import SparseFFN
from moesaic.nn.sparse import Asked, Experts
from moesaic.routing import Gates


def scatter_experts(decoder: Decoder, mesh: DeviceMesh) -> set[nn.Parameter]:
    """Leave to each process of a mesh its share of the experts of every sparse layer, and return their parameters.

    These become DTensors, each process's piece the matrices of its own experts.
    """
    found, world, rank = set[nn.Parameter](), mesh.size(), mesh.get_local_rank()
    for path, layer in slots_of(decoder, SparseFFN).items():
        if layer.num_experts % world:
            expected = f"a multiple of {world}, the number of processes"
            raise RecipeError("experts cannot be divided", field=path, expected=expected, got=layer.num_experts)
        for name, whole in list(layer.experts.named_parameters()):
            piece = whole.detach().chunk(world)[rank].clone()
            shared = nn.Parameter(DTensor.from_local(piece, mesh, [Shard(0)], run_check=False))
            setattr(layer.experts, name, shared)
            found.add(shared)
        layer.experts.forward = partial(exchanged, layer.experts)  # type: ignore[method-assign]
    return found


def exchanged(experts: Experts, x: Float[Tensor, "m d"], rows: Asked, gates: Gates | None) -> Float[Tensor, "m d"]:
    """The outputs of rows that are sorted by expert, each computed by the process that has its expert."""
    world, ends = distributed.get_world_size(), rows.ends
    asked = ends.long().diff(prepend=ends.new_zeros(1).long()).view(world, -1)  # rows of each expert, by process
    given = torch.empty_like(asked)
    distributed.all_to_all_single(given, asked)
    sent, received = asked.sum(1).tolist(), given.sum(1).tolist()
    moving = Moved.apply(x, sent, received)
    own = torch.arange(asked.shape[1], device=x.device).repeat(world).repeat_interleave(given.flatten())
    order = own.argsort(stable=True)
    own_ends = given.sum(0).cumsum(0).int()
    out = experts.product(moving[order], own_ends, piece(experts.gate_up_proj), piece(experts.down_proj))
    back = torch.empty_like(out).index_copy(0, order, out)
    return Moved.apply(back, received, sent)


def piece(weight: Any) -> Tensor:
    """The matrices of this process's experts. Their gradient is a sum over processes, and becomes a mean as all are."""
    own: Tensor = weight.to_local()
    if own.requires_grad:
        own.register_hook(lambda gradient: gradient / distributed.get_world_size())
    return own


class Moved(torch.autograd.Function):
    """Rows that travel: the first `sent[0]` of them to the first process, and so on; their gradients travel back."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sent: list[int], received: list[int]) -> Tensor:
        ctx.sent, ctx.received = sent, received
        return moved(rows, sent, received)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return moved(gradients[0], ctx.received, ctx.sent), None, None


def moved(rows: Tensor, sent: list[int], received: list[int]) -> Tensor:
    found = rows.new_empty(sum(received), *rows.shape[1:])
    distributed.all_to_all_single(found, rows.contiguous(), received, sent)
    return found
