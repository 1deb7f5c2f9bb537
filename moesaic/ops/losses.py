"""Losses of language models and routers, as functions of logits, or of the states and the head that make them.

Knows nothing about models, batches on disk or training.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

UNSCORED = -100

CHUNK = 2**23
"""Logits that exist at once while a loss is computed."""


def token_nll(logits: Float[Tensor, "b t v"], targets: Int[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    """Negative log-likelihood of every target in nats, in float32 at least; 0 where the target is `UNSCORED`.

    The caller shifts the targets: `targets[:, i]` is the token that follows input i.
    """
    flat = logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32))
    loss = F.cross_entropy(flat, targets.flatten(), ignore_index=UNSCORED, reduction="none")
    return loss.view_as(targets)


class Targets(NamedTuple):
    """The scored positions of a batch, counted row by row, and the token that each has to predict."""

    at: Int[Tensor, " p"]
    ids: Int[Tensor, " p"]

    @staticmethod
    def of(targets: Int[Tensor, "b t"]) -> "Targets":
        """All targets but `UNSCORED`. Best called on the host: a device would be waited for."""
        at = (targets != UNSCORED).flatten().nonzero()[:, 0]
        return Targets(at, targets.flatten()[at])


def summed_nll(
    head: nn.Module, width: int, states: Float[Tensor, "b t d"], targets: Targets
) -> tuple[Float[Tensor, ""], Float[Tensor, " b"]]:
    """`token_nll` of a head's logits, summed; and that of each row, which carries no gradient.

    `head`: states -> `width` logits, in the linear slot. Logits exist at scored positions only, and at most `CHUNK` of
    them at once: while gradients are needed, those of a chunk are computed beside its loss.
    """
    at, wanted = (one.to(states.device, non_blocking=True) for one in targets)
    own, size = states.flatten(0, 1).index_select(0, at), max(1, CHUNK // width)
    learned = [weight for weight in head.parameters() if weight.requires_grad]
    if torch.is_grad_enabled() and (states.requires_grad or learned):
        total, each = ChunkedNLL.apply(head, size, own, wanted, *learned)
    else:
        chunks = zip(own.split(size), wanted.split(size), strict=True)
        each = torch.cat([token_nll(head(some[None], None), ids[None])[0] for some, ids in chunks])
        total = each.sum()
    return total, each.new_zeros(len(states)).index_add(0, at // states.shape[1], each)


class ChunkedNLL(torch.autograd.Function):
    """The loss of p states under a head with some trained weights: its sum, and that of each state without gradient."""

    @staticmethod
    def forward(
        ctx: Any, head: nn.Module, size: int, states: Float[Tensor, "p d"], targets: Int[Tensor, " p"], *learned: Tensor
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " p"]]:
        each = states.new_empty(len(states), dtype=torch.promote_types(states.dtype, torch.float32))
        slopes = [torch.empty_like(states), *map(torch.zeros_like, learned)]
        for first in range(0, len(states), size):
            at = slice(first, first + size)
            each[at], slopes[0][at], *more = nll_and_slopes(head, states[at], targets[at], learned)
            for total, one in zip(slopes[1:], more, strict=True):
                total += one
        ctx.save_for_backward(*slopes)
        ctx.mark_non_differentiable(each)
        return each.sum(), each

    @staticmethod
    def backward(ctx: Any, slope: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        of_states, *of_learned = (one * slope.to(one.dtype) for one in ctx.saved_tensors)
        return None, None, of_states, None, *of_learned


def nll_and_slopes(
    head: nn.Module, states: Float[Tensor, "c d"], targets: Int[Tensor, " c"], learned: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """The loss of each state of a chunk, and the gradients of their sum: in the states, and in the trained weights."""
    with torch.enable_grad():
        inputs = states.detach().requires_grad_()
        logits = head(inputs[None], None)
    own, exact = targets[None, :, None], torch.promote_types(logits.dtype, torch.float32)
    chances = logits.detach().to(exact).log_softmax(-1)
    loss = -chances.gather(-1, own)[0, :, 0]
    slope = chances.exp_().scatter_add_(-1, own, chances.new_full(own.shape, -1.0)).to(logits.dtype)
    return loss, *torch.autograd.grad(logits, (inputs, *learned), slope)


def divergence(
    base: nn.Module, known: Float[Tensor, "p d"], head: nn.Module, states: Float[Tensor, "p d"]
) -> Float[Tensor, ""]:
    """Mean KL(base || other) of two models' next tokens in nats, of p states under the head of each model.

    No gradient reaches `base` and `known`. At most `CHUNK` logits of each exist at once.
    """

    def summed(known: Float[Tensor, "c d"], states: Float[Tensor, "c d"]) -> Float[Tensor, ""]:
        with torch.no_grad():
            wanted = base(known[None], None)[0]
        found = head(states[None], None)[0]
        exact = torch.promote_types(found.dtype, torch.float32)
        target, own = wanted.to(exact).log_softmax(-1), found.to(exact).log_softmax(-1)
        return F.kl_div(own, target, reduction="sum", log_target=True)

    size = max(1, CHUNK // head(states[:1, None], None).shape[-1])
    chunks = zip(known.split(size), states.split(size), strict=True)
    return torch.stack([checkpoint(summed, *some, use_reentrant=False) for some in chunks]).sum() / len(states)


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
