"""Rows of a matrix that routes tokens to experts, from states of tokens that belong to each expert.

A state x goes to the expert e of the largest row_e · x. Knows nothing about models. d model, e experts.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Rows = Float[Tensor, "e d"]
States = Float[Tensor, "_ d"]

RIDGE = 0.01
"""The penalty of `ridge`, as a share of the mean square of a state's coordinate."""
TINY = 1e-8


def unit(rows: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
    """Rows of length 1; a row of zeros stays."""
    return rows / rows.norm(dim=-1, keepdim=True).clamp_min(TINY)


def means(states: Sequence[States]) -> Rows:
    """The mean state of each expert's tokens, of length 1."""
    return unit(torch.stack([one.double().mean(0) for one in states]))


def ridge(states: Sequence[States], penalty: float = RIDGE) -> Rows:
    """The rows with the least squared error against 1 for a token's own expert and 0 for the others.

    In closed form, without a bias, which routers of sparse models lack; the tokens of each expert weigh the same.
    """
    d = states[0].shape[1]
    gram, cross = torch.zeros(d, d, dtype=torch.float64), torch.zeros(len(states), d, dtype=torch.float64)
    for index, one in enumerate(states):
        tokens = one.double()
        gram += tokens.t() @ tokens / len(tokens)
        cross[index] = tokens.mean(0)
    gram += penalty * gram.diagonal().mean() * torch.eye(d, dtype=torch.float64)
    return torch.linalg.solve(gram, cross.t()).t()


def sharpened(rows: Rows, states: Sequence[States]) -> Rows:
    """The rows times the number that makes the experts of the tokens most probable, by the softmax of all experts."""
    logits = [one.double() @ rows.double().t() for one in states]

    def surprise(power: float) -> float:
        told = (
            F.cross_entropy(some * 2.0**power, torch.full((len(some),), index)) for index, some in enumerate(logits)
        )
        return float(torch.stack([*told]).mean())

    low, high = -20.0, 20.0
    for _ in range(40):  # of a convex function, by thirds
        left, right = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, right) if surprise(left) < surprise(right) else (left, high)
    return rows * 2.0 ** ((low + high) / 2)
