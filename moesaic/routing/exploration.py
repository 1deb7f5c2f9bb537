"""Exploration: choices beside the best one in a router's training, so that a loss on the answer reaches the router.

Only training calls these functions of logits: routers and selections do not, so no decision is noisy.
They draw from torch's default generator, which the training loop seeds by (seed, step).
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def gumbel_choice(logits: Float[Tensor, "n e"], temperature: float) -> Float[Tensor, "n e"]:
    """Draw one expert a row with its probability: exactly one-hot, with the gradient of a softmax.

    Straight-through Gumbel-softmax (arXiv 1611.01144), equations 1 and 2 and section 2.2: `temperature` divides the
    perturbed logits whose softmax gives the gradient; the draw does not depend on it.
    """
    noise = -torch.empty_like(logits).exponential_().clamp_min(torch.finfo(logits.dtype).tiny).log()
    soft = ((logits + noise) / temperature).softmax(-1)
    hard = F.one_hot(soft.argmax(-1), logits.shape[-1]).to(soft.dtype)
    return hard + (soft - soft.detach())


def noisy(logits: Float[Tensor, "n e"], spread: Float[Tensor, "n e"]) -> Float[Tensor, "n e"]:
    """logits + N(0, 1) softplus(spread), from which the selection chooses: arXiv 1701.06538, equations 3 to 5."""
    return logits + torch.randn_like(logits) * F.softplus(spread)
