"""Gated feed-forward blocks for rows that chose different experts: sum_e w[n, e] D_e (act(G_e x[n]) * U_e x[n]).

All three matrices of an expert are stored as (i, d), so that the stacked matrices of all experts flatten to one matrix
without a copy. Knows nothing about gates or modules. n rows, t tokens, e experts, i inner, d model.
"""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Activation = Callable[[Tensor], Tensor]


def block(
    x: Float[Tensor, "n t d"],
    gate: Float[Tensor, "i d"],
    up: Float[Tensor, "i d"],
    down: Float[Tensor, "i d"],
    act: Activation,
    weights: Float[Tensor, " n"],
) -> Float[Tensor, "n t d"]:
    """Apply one expert to all rows, each row with its own weight."""
    inner = act(F.linear(x, gate)) * F.linear(x, up)
    return (inner * weights[:, None, None].to(inner.dtype)) @ down


def blended(
    x: Float[Tensor, "n t d"],
    gate: Float[Tensor, "e i d"],
    up: Float[Tensor, "e i d"],
    down: Float[Tensor, "e i d"],
    act: Activation,
    weights: Float[Tensor, "n e"],
) -> Float[Tensor, "n t d"]:
    """Apply all experts to all rows in one GEMM for each projection; the last one sums over the experts."""
    inner = act(F.linear(x, gate.flatten(0, 1))) * F.linear(x, up.flatten(0, 1))
    shares = weights[:, None, :, None].to(inner.dtype)
    return (inner.unflatten(-1, gate.shape[:2]) * shares).flatten(2) @ down.flatten(0, 1)
