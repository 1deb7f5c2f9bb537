"""Exploration: what a router's training tries beside its best choice, so that a loss on the answer has a say.

Functions of logits that only trainings call: no router and no selection knows of them, so no decision is ever noisy.
They draw from torch's own generator, which the training loop seeds by (seed, step).
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def gumbel_choice(logits: Float[Tensor, "n e"], temperature: float) -> Float[Tensor, "n e"]:
    """One expert a row, drawn with its probability: exactly one-hot, with the gradient of the softmax.

    Straight-through Gumbel-softmax (arXiv 1611.01144), equations 1 and 2 and section 2.2: `temperature` divides the
    perturbed logits whose softmax lends its gradient; who is drawn does not depend on it.
    """
    noise = -torch.empty_like(logits).exponential_().clamp_min(torch.finfo(logits.dtype).tiny).log()
    soft = ((logits + noise) / temperature).softmax(-1)
    hard = F.one_hot(soft.argmax(-1), logits.shape[-1]).to(soft.dtype)
    return hard + (soft - soft.detach())


def noisy(logits: Float[Tensor, "n e"], spread: Float[Tensor, "n e"]) -> Float[Tensor, "n e"]:
    """logits + N(0, 1) softplus(spread), whose best are then kept by the selection.

    Noisy top-k gating (arXiv 1701.06538), equations 3 to 5.
    """
    return logits + torch.randn_like(logits) * F.softplus(spread)
