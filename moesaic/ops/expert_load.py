"""How evenly the tokens of a batch are spread over the experts of one sparse layer, as pure functions.

`counts`: how often each expert was chosen. Knows nothing about layers, models or processes.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

Counts = Int[Tensor, " e"] | Float[Tensor, " e"]


def choices(weights: Float[Tensor, "n e"]) -> Int[Tensor, " e"]:
    """Counts of a batch, from the weights of its tokens."""
    return (weights > 0).sum(0)


def max_violation(counts: Counts) -> float:
    """max c / mean c - 1: 0 when balanced, e - 1 when one expert has every token. MaxVio of arXiv 2408.15664."""
    return (counts.max() / counts.double().mean()).item() - 1


def least_load(counts: Counts) -> float:
    """min c / mean c: 1 when balanced, 0 when an expert has no token."""
    return (counts.min() / counts.double().mean()).item()


def balance_loss(probabilities: Float[Tensor, "n e"], counts: Counts) -> Float[Tensor, ""]:
    """e sum_i f_i P_i: f_i the share of all choices that are i, P_i the mean probability of i; 1 when balanced.

    `counts` may be those of a larger batch. The loss is then this part's, and the mean of all parts, each weighted by
    its tokens, is the loss of the whole: a part by itself would ask for a balance within the part (arXiv 2501.11873).
    """
    share = counts / counts.sum()
    return probabilities.shape[1] * (share * probabilities.mean(0)).sum()


def towards_equal(bias: Float[Tensor, " e"], counts: Counts, rate: float) -> Float[Tensor, " e"]:
    """The bias of the choice, raised by `rate` for experts below the mean and lowered for those above it; their mean
    stays (arXiv 2408.15664).
    """
    step = rate * torch.sign(counts.double().mean() - counts)
    return bias + (step - step.mean()).to(bias)


def thresholds(scores: Float[Tensor, "n e"], bias: Float[Tensor, " e"], chosen: int) -> Float[Tensor, " e"]:
    """For each expert, what its score must exceed beyond the first that is not chosen, so that it gets its share.

    A token chooses i if score_i + bias_i is among its `chosen` largest. With the negative of the result as bias, and
    the same first that are not chosen, each expert has n chosen / e of the tokens.
    """
    n, e = scores.shape
    first_left = (scores + bias).topk(chosen + 1, -1).values[:, -1:]
    place = n * chosen // e
    return (scores - first_left).sort(0, descending=True).values[min(place, n - 1)]


def towards_thresholds(bias: Float[Tensor, " e"], found: Float[Tensor, " e"], pace: float) -> Float[Tensor, " e"]:
    """The bias, moved by the share `pace` of its way to the negative of these thresholds, with a mean of 0."""
    moved = bias - pace * (bias + found)
    return moved - moved.mean()
