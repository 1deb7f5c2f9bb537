"""TIES: several changes of one tensor merged into one change (arXiv 2306.01708).

Knows nothing about models.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

KEPT = 0.2
"""The share of each change that is kept: its largest values."""


def ties(changes: Sequence[Float[Tensor, "*n"]], kept: float = KEPT) -> Float[Tensor, "*n"]:
    """The merged change: the mean of the largest values of each change that have the sign of their sum.

    A value of every change is kept where it is among the `kept` share of largest sizes; the mean at a place is over the
    changes whose kept value there has the elected sign.
    """
    trimmed = torch.stack([largest(change, kept) for change in changes])
    elected = torch.sign(trimmed.sum(0))
    agreeing = torch.sign(trimmed) == elected
    return (trimmed * agreeing).sum(0) / agreeing.sum(0).clamp_min(1)


def largest(change: Float[Tensor, "*n"], kept: float) -> Float[Tensor, "*n"]:
    """A change with all but its largest values set to 0."""
    count = max(1, round(kept * change.numel()))
    least = change.abs().flatten().topk(count).values[-1]
    return torch.where(change.abs() >= least, change, 0.0)
