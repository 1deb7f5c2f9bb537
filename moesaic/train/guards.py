"""Training a guard: a network over the experts and "none of them", which learns from prompts and from neutral text.

Knows nothing about where features come from.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from moesaic.ops.metrics import auroc
from moesaic.routing.guard import Guard, logit, odds
from moesaic.sections.training import Train
from moesaic.train.loop import fit
from moesaic.train.routers import best_temperature

HIDDEN = [256]
EPOCHS, PATIENCE, BATCH, LR, DECAY = 12, 4, 64, 1e-3, 0.01
REFUSED, REFUSED_IN_OTHER_FORMS = 0.01, 0.05
"""Shares of the experts' own validation prompts, as they are and in other forms, that `auto` may abstain on at most."""


@dataclass(frozen=True)
class Outcomes:
    """Vectors of n prompts, and the outcome of each: the index of its expert, or the number of experts for none.

    `as_is`, `changed`: prompts of experts as they are, and in another form that keeps all words; these decide on
    the limit.
    """

    vectors: Float[Tensor, "n d"]
    labels: Int[Tensor, " n"]
    as_is: Bool[Tensor, " n"]
    changed: Bool[Tensor, " n"]


def train_guard(
    train: Outcomes, validation: Outcomes, num_experts: int, abstain: str | float, seed: int, together: bool = False
) -> tuple[Guard, dict[str, float]]:
    """A guard at its best by validation, calibrated; and its validation metrics.

    Every outcome counts alike, whatever the number of its rows. `abstain`: see `limit_of`. `together`: features share
    one scale.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        guard = Guard(train.vectors.shape[1], num_experts, HIDDEN)
    guard.net.mean.copy_(train.vectors.mean(0))
    deviation = train.vectors.std() if together else train.vectors.std(0)
    guard.net.deviation.copy_(deviation.clamp_min(1e-6))
    counts = torch.bincount(train.labels, minlength=num_experts + 1).clamp_min(1)
    weights = len(train.labels) / (len(counts) * counts)
    steps = math.ceil(len(train.labels) / BATCH)

    def batch(step: int) -> Tensor:
        epoch, place = divmod(step, steps)
        order = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
        return order[place * BATCH : (place + 1) * BATCH]

    def loss(rows: Tensor) -> tuple[Tensor, int]:
        guard.train()
        return F.cross_entropy(guard.net(train.vectors[rows]), train.labels[rows], weights) * len(rows), len(rows)

    @torch.no_grad()
    def validate() -> float:
        return F.cross_entropy(guard.eval().net(validation.vectors), validation.labels, weights).item()

    settings = Train(
        steps=EPOCHS * steps, evaluate_every=steps, batch=BATCH, lr=LR, weight_decay=DECAY, patience=PATIENCE
    )
    trained = fit(dict(guard.named_parameters()), batch, loss, validate, settings, LR, lambda row: None, seed)
    guard.load_state_dict(trained.state, strict=False)
    with torch.no_grad():
        return calibrated(guard, guard.eval().net(validation.vectors), validation, abstain)


@torch.no_grad()
def calibrated(
    guard: Guard, logits: Float[Tensor, "n outcomes"], held_out: Outcomes, abstain: str | float
) -> tuple[Guard, dict[str, float]]:
    """Set the temperature and the limit of a guard by logits for prompts that were not learned from."""
    size = logits.std().clamp_min(1e-6).item()  # the search has bounds, logits have none
    guard.net.temperature.fill_(size * best_temperature(logits / size, held_out.labels))
    own = odds(logits / guard.net.temperature)
    guard.limit.fill_(limit_of(own, held_out, abstain))
    return guard, figures(own, held_out, guard.limit, logits.shape[1] - 1)


def limit_of(own: Float[Tensor, " n"], held_out: Outcomes, abstain: str | float) -> float:
    """The log-odds below which a router abstains: those of the probability `abstain`, or for "auto" the highest below
    which at most the share REFUSED of the prompts as they are lies, and REFUSED_IN_OTHER_FORMS of the changed ones.
    """
    if not isinstance(abstain, str):
        return logit(abstain)
    shares = ((held_out.as_is, REFUSED), (held_out.changed, REFUSED_IN_OTHER_FORMS))
    return min(own[some].double().quantile(share, interpolation="lower").item() for some, share in shares if some.any())


def figures(own: Float[Tensor, " n"], held_out: Outcomes, limit: Tensor, num_experts: int) -> dict[str, float]:
    """Shares of own and of neutral prompts on which the router abstains, and the AUROC of the two."""
    mine, silent = held_out.labels < num_experts, own < limit
    return {
        "abstained_own": silent[held_out.as_is].double().mean().item(),
        "abstained_neutral": silent[~mine].double().mean().item(),
        "auroc": auroc(own[mine].double().numpy(), own[~mine].double().numpy()),
    }
