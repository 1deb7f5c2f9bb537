"""Tensor trains: cores multiplied out into a low-rank pair, and a matrix cut into cores.

The one layout: a matrix from m_1 x ... x m_p to n_1 x ... x n_q numbers has cores G_k of shape (r_{k-1}, f_k, r_k) with
f = m_1, ..., m_p, n_1, ..., n_q; the first and the last bond are 1. Of an input's index m_1 is the fastest digit, of an
output's n_q: what the published contraction core by core computes (TT-LoRA MoE, arXiv 2504.21190).
Knows nothing about modules, scales or where factors come from. i/o in/out, r rank.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

Core = Float[Tensor, "_ _ _"]


def pair(inputs: Sequence[Core], outputs: Sequence[Core]) -> tuple[Float[Tensor, "r i"], Float[Tensor, "r o"]]:
    """A and B of the low-rank product x A^T B that the train is: its cores on either side of the bond in its middle.

    Takes about (i + o) r^2 multiplications, however many tokens there are.
    """
    return merged([core.permute(2, 1, 0) for core in reversed(inputs)]), merged(outputs)


def merged(cores: Sequence[Core]) -> Float[Tensor, "r d"]:
    """A chain that ends in a bond of 1, multiplied out from there; its first factor is the slowest digit of d."""
    product = cores[-1].flatten(1)
    for core in reversed(cores[:-1]):
        product = (core.flatten(0, 1) @ product).view(core.shape[0], -1)
    return product


def decomposed(
    matrix: Float[Tensor, "o i"], inputs: Sequence[int], outputs: Sequence[int], rank: int
) -> tuple[tuple[Core, ...], tuple[Core, ...]]:
    """The cores of a train near a matrix, exact where that is a train of this rank.

    TT-SVD: a singular value decomposition at each bond from left to right, cut off at the rank (Oseledets, Tensor-Train
    Decomposition, 2011, algorithm 1). The last core carries the size, the others are orthonormal.
    """
    p, factors = len(inputs), (*inputs, *outputs)
    rest = matrix.t().reshape(*reversed(inputs), *outputs)
    rest = rest.permute(*reversed(range(p)), *range(p, len(factors))).reshape(1, -1)
    cores: list[Core] = []
    for factor in factors[:-1]:
        bond = len(rest)
        u, s, v = torch.linalg.svd(rest.reshape(bond * factor, -1), full_matrices=False)
        cores.append(u[:, :rank].reshape(bond, factor, -1))
        rest = s[:rank, None] * v[:rank]
    cores.append(rest[:, :, None])
    return tuple(cores[:p]), tuple(cores[p:])
