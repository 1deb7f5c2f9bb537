"""Next-token distributions of several models as one, row by row and position by position.

Each model answers some of the rows: an `Answer` holds these rows (g), their logits (g, t, v) and their weights (g, t);
a model with weight 0 does not count. Where only one model counts, the result is exactly its logits.
Knows nothing about gates or modules. n rows, g of them, t tokens, v vocabulary.
"""

from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moesaic.hardware import exact

Combine = Literal["mixture", "product"]
COMBINATIONS: tuple[Combine, ...] = get_args(Combine)

SILENT = -1e30  # the logarithm of probability 0; finite, so that no gradient becomes NaN


class Answer(NamedTuple):
    """The rows that one model answers, with its logits and its weights there."""

    rows: Int[Tensor, " g"]
    logits: Float[Tensor, "g t v"]
    weights: Float[Tensor, "g t"]


def combined(answers: list[Answer], num_rows: int, how: Combine) -> Float[Tensor, "n t v"]:
    """Combine the logits of all rows, in float32 at least; at least one model answers each row."""
    answers = [exactly(answer) for answer in answers]
    if len(answers) == 1 and len(answers[0].rows) == num_rows:
        return answers[0].logits
    return mixture(answers, num_rows) if how == "mixture" else product(answers, num_rows)


def exactly(answer: Answer) -> Answer:
    """The same in float32 at least, in which sums of exponentials keep their digits."""
    dtype = exact(answer.logits.dtype)
    return Answer(answer.rows, answer.logits.to(dtype), answer.weights.to(dtype))


def mixture(answers: list[Answer], num_rows: int) -> Float[Tensor, "n t v"]:
    """log sum_e w_e softmax(z_e), plus sum_e w_e logsumexp(z_e), so that models that agree give their own logits."""
    shape, like = (num_rows, *answers[0].logits.shape[1:]), answers[0].logits
    counts = like.new_zeros(shape[:2])
    for rows, _, weights in answers:
        counts = counts.index_add(0, rows, (weights > 0).to(counts))
    out, level = like.new_full(shape, SILENT), like.new_zeros(shape[:2])
    for rows, logits, weights in answers:
        counted = weights > 0
        alone = counted & (counts[rows] == 1)
        size = logits.logsumexp(-1)
        shift = torch.where(alone, 0.0, size - weights.masked_fill(~counted, 1.0).log())
        weighted = (logits - shift[..., None]).masked_fill(~counted[..., None], SILENT)
        out = out.index_copy(0, rows, torch.logaddexp(out[rows], weighted))
        level = level.index_add(0, rows, torch.where(alone, 0.0, weights * size))
    return out + level[..., None]


def product(answers: list[Answer], num_rows: int) -> Float[Tensor, "n t v"]:
    """sum_e w_e z_e: its softmax is the normalised product of the distributions to the powers w_e."""
    out = answers[0].logits.new_zeros(num_rows, *answers[0].logits.shape[1:])
    for rows, logits, weights in answers:
        out = out.index_add(0, rows, logits * weights[..., None])
    return out
