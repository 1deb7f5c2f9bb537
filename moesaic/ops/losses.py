"""Losses of language models and routers, as pure functions of logits.

Knows nothing about models, batches on disk or training.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

UNSCORED = -100


def token_nll(logits: Float[Tensor, "b t v"], targets: Int[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    """Negative log-likelihood of every target in nats, in float32 at least; 0 where the target is `UNSCORED`.

    The caller shifts the targets: `targets[:, i]` is the token that follows input i.
    """
    flat = logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32))
    loss = F.cross_entropy(flat, targets.flatten(), ignore_index=UNSCORED, reduction="none")
    return loss.view_as(targets)


def load_balancing(logits: Float[Tensor, "n e"]) -> Float[Tensor, ""]:
    """e x sum_e (share of rows whose best expert is e) x (mean probability of e); 1 when balanced.

    Switch Transformers (arXiv 2101.03961), equations 4 to 6.
    """
    probabilities = logits.softmax(-1)
    share = F.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype).mean(0)
    return logits.shape[-1] * (share * probabilities.mean(0)).sum()


def router_z(logits: Float[Tensor, "n e"]) -> Float[Tensor, ""]:
    """Mean squared log-partition of the router's logits. ST-MoE (arXiv 2202.08906), equation 5."""
    return torch.logsumexp(logits, -1).square().mean()
