"""Next-token distributions of several models as one, row by row and position by position.

Each model answers some of the rows: a part is those rows (g), its logits there (g, t, v) and its weights (g, t), 0
where it has no say. Where a single model has one, the result is its logits as they are.
Knows nothing about gates or modules. n rows, g of them, t tokens, v vocabulary.
"""

from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

Combine = Literal["mixture", "product"]
COMBINATIONS: tuple[Combine, ...] = get_args(Combine)

SILENT = -1e30
"""The logarithm of a probability that no model gives: finite, so that gradients stay numbers."""


class Part(NamedTuple):
    """What one model says."""

    rows: Int[Tensor, " g"]
    logits: Float[Tensor, "g t v"]
    weights: Float[Tensor, "g t"]


def combined(parts: list[Part], num_rows: int, how: Combine) -> Float[Tensor, "n t v"]:
    """The logits of all rows, each of which at least one model answers."""
    if len(parts) == 1 and len(parts[0].rows) == num_rows:
        return parts[0].logits
    return mixture(parts, num_rows) if how == "mixture" else product(parts, num_rows)


def mixture(parts: list[Part], num_rows: int) -> Float[Tensor, "n t v"]:
    """log sum_e w_e softmax(z_e), and on top of it sum_e w_e logsumexp(z_e): models that agree give their logits."""
    shape, like = (num_rows, *parts[0].logits.shape[1:]), parts[0].logits
    voices = like.new_zeros(shape[:2])
    for rows, _, weights in parts:
        voices = voices.index_add(0, rows, (weights > 0).to(voices))
    out, level = like.new_full(shape, SILENT), like.new_zeros(shape[:2])
    for rows, logits, weights in parts:
        heard = weights > 0
        alone = heard & (voices[rows] == 1)
        size = logits.logsumexp(-1)
        shift = torch.where(alone, 0.0, size - weights.masked_fill(~heard, 1.0).log())
        spoken = (logits - shift[..., None]).masked_fill(~heard[..., None], SILENT)
        out = out.index_copy(0, rows, torch.logaddexp(out[rows], spoken))
        level = level.index_add(0, rows, torch.where(alone, 0.0, weights * size))
    return out + level[..., None]


def product(parts: list[Part], num_rows: int) -> Float[Tensor, "n t v"]:
    """sum_e w_e z_e, whose softmax is the product of the distributions to the powers w_e, normalised."""
    out = parts[0].logits.new_zeros(num_rows, *parts[0].logits.shape[1:])
    for rows, logits, weights in parts:
        out = out.index_add(0, rows, logits * weights[..., None])
    return out
