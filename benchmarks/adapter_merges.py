"""Merges of LoRA experts into the weights of their base, beside the mean: task arithmetic and TIES.

Both add one matrix of changes to each linear that an expert adapts. Knows nothing about rows or runs.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from moesaic.adapters import LoRA
from moesaic.model.decoder import Decoder

KEPT = 0.2
"""Share of each expert's changes that TIES keeps, as in its paper."""


def change(expert: LoRA, path: str, like: Tensor) -> Float[Tensor, "o i"]:
    """The change that an expert makes to the weight of one linear; 0 where the expert does not adapt it."""
    if path not in expert.pairs:
        return torch.zeros_like(like)
    a, b = expert.pairs[path]
    return (expert.scale_of(path) * (b.t() @ a)).to(like)


def task_arithmetic(changes: Float[Tensor, "e o i"]) -> Float[Tensor, "o i"]:
    """The sum of all changes: arXiv 2212.04089, section 2."""
    return changes.sum(0)


def ties(changes: Float[Tensor, "e o i"]) -> Float[Tensor, "o i"]:
    """Trim, elect signs, and average what agrees: arXiv 2306.01708, section 4.

    Of each expert and matrix the largest changes are kept. An entry takes the sign of the sum of what is left, and the
    mean of the changes with this sign.
    """
    size = changes.abs().flatten(1)
    most = max(1, round(KEPT * size.shape[1]))
    least = size.topk(most, dim=1).values[:, -1]
    kept = changes * (changes.abs() >= least[:, None, None])
    agreeing = kept * (kept.sign() == kept.sum(0).sign())
    return agreeing.sum(0) / (agreeing != 0).sum(0).clamp_min(1)


RULES = {"task arithmetic": task_arithmetic, "TIES": ties}


@torch.no_grad()
def merged(base: Decoder, experts: Sequence[LoRA], rule: str, scale: float) -> Decoder:
    """The base with the experts merged into its weights, times `scale`; the base itself is changed."""
    for path in sorted({path for expert in experts for path in expert.pairs}):
        weight = base.get_parameter(f"{path}.weight")
        weight.add_(scale * RULES[rule](torch.stack([change(expert, path, weight) for expert in experts])))
    return base
