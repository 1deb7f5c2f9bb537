"""Tensor trains: cores multiplied out into a low-rank pair.

Layout: a matrix from m_1 x ... x m_p to n_1 x ... x n_q numbers has cores G_k of shape (r_{k-1}, f_k, r_k) with
f = m_1, ..., m_p, n_1, ..., n_q; the first and the last bond are 1. m_1 is the fastest digit of an input's index, n_q
of an output's, as in the published contraction core by core (TT-LoRA MoE, arXiv 2504.21190).
Knows nothing about modules, scales or the choice of factors. i/o in/out, r rank.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

Core = Float[Tensor, "_ _ _"]


def pair(inputs: Sequence[Core], outputs: Sequence[Core]) -> tuple[Float[Tensor, "r i"], Float[Tensor, "r o"]]:
    """Multiply out A and B of the low-rank product x A^T B: the cores on either side of the middle bond.

    Takes about (i + o) r^2 multiplications, whatever the number of tokens.
    """
    return merged([core.permute(2, 1, 0) for core in reversed(inputs)]), merged(outputs)


def merged(cores: Sequence[Core]) -> Float[Tensor, "r d"]:
    """Multiply out a chain whose last bond is 1, from its end; its first factor is the slowest digit of d."""
    product = cores[-1].flatten(1)
    for core in reversed(cores[:-1]):
        product = (core.flatten(0, 1) @ product).view(core.shape[0], -1)
    return product
