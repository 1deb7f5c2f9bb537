"""Low-rank products for rows that chose different adapters: y[n] + sum_e w[n, e] (x[n] A_e^T) B_e.

Four forms of one sum, equal in value; the caller picks the fastest for its sizes. The last product adds onto y, which
saves writing and reading a tensor of y's size. `index_select` is three to four times as fast as indexing on a CPU.
`of_groups` is the change alone, of rows that are sorted by adapter.
Knows nothing about gates or modules. n rows, t tokens, e experts, r rank, i/o in/out, m (row, expert) pairs.
"""

import torch
from jaxtyping import Float, Int, Int32
from torch import Tensor
from torch.nn import functional as F

from moesaic.ops.grouped import grouped


def single(
    y: Float[Tensor, "n t o"],
    x: Float[Tensor, "n t i"],
    a: Float[Tensor, "r i"],
    b: Float[Tensor, "r o"],
    weights: Float[Tensor, " n"],
) -> Float[Tensor, "n t o"]:
    """Apply one expert to all rows, each row with its own weight."""
    inner = F.linear(x, a) * weights[:, None, None]
    return torch.addmm(y.flatten(0, 1), inner.flatten(0, 1), b).view_as(y)


def masked(
    y: Float[Tensor, "n t o"],
    x: Float[Tensor, "n t i"],
    a: Float[Tensor, "e r i"],
    b: Float[Tensor, "e r o"],
    weights: Float[Tensor, "n e"],
) -> Float[Tensor, "n t o"]:
    """Apply all experts in two GEMMs and mask the inner columns by the weights: best when e x r is small."""
    e, r, i = a.shape
    inner = F.linear(x, a.reshape(e * r, i)).unflatten(-1, (e, r)) * weights[:, None, :, None]
    return torch.addmm(y.flatten(0, 1), inner.flatten(2).flatten(0, 1), b.reshape(e * r, b.shape[2])).view_as(y)


def each(
    y: Float[Tensor, "n t o"],
    x: Float[Tensor, "n t i"],
    a: Float[Tensor, "e r i"],
    b: Float[Tensor, "e r o"],
    experts: Int[Tensor, " n"],
    weights: Float[Tensor, " n"],
) -> Float[Tensor, "n t o"]:
    """Apply exactly one expert to each row: two batched GEMMs over the rows in their order."""
    inner = torch.bmm(x, a.index_select(0, experts).transpose(1, 2)) * weights[:, None, None]
    return torch.baddbmm(y, inner, b.index_select(0, experts))


def gathered(
    y: Float[Tensor, "n t o"],
    x: Float[Tensor, "n t i"],
    a: Float[Tensor, "e r i"],
    b: Float[Tensor, "e r o"],
    rows: Int[Tensor, " m"],
    experts: Int[Tensor, " m"],
    weights: Float[Tensor, " m"],
) -> Float[Tensor, "n t o"]:
    """Compute only the (row, expert) pairs given, in two batched GEMMs, and add the products to their rows."""
    chosen = a.index_select(0, experts), b.index_select(0, experts)
    inner = torch.bmm(x.index_select(0, rows), chosen[0].transpose(1, 2)) * weights[:, None, None]
    return y.index_add(0, rows, torch.bmm(inner, chosen[1]))


def of_groups(
    x: Float[Tensor, "m i"],
    a: Float[Tensor, "e r i"],
    b: Float[Tensor, "e r o"],
    ends: Int32[Tensor, " e"],
    weights: Float[Tensor, " m"],
) -> Float[Tensor, "m o"]:
    """Each row under one adapter, for rows that are sorted by adapter: see `grouped`."""
    return grouped(grouped(x, a, ends) * weights[:, None], b.transpose(1, 2), ends)
