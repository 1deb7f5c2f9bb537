"""Training a guard: a network over the experts and "none of them", which learns from prompts and from neutral text.

Knows nothing about where features come from.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from moesaic.ops.metrics import auroc, of_a_share
from moesaic.routing.guard import Guard, logit, odds
from moesaic.routing.routers import MLPRouter
from moesaic.sections.training import Train
from moesaic.train.loop import fit
from moesaic.train.routers import best_temperature

HIDDEN = [256]
EPOCHS, PATIENCE, BATCH, LR, DECAY = 12, 4, 64, 1e-3, 0.01
REFUSED, REFUSED_IN_OTHER_FORMS = 0.02, 0.05
"""Shares of the experts' own prompts, as they are and in other forms, that `auto` may abstain on at most."""


Rows = tuple[Float[Tensor, "n d"], Int[Tensor, " n"]]
"""Vectors and their outcomes."""
Readers = tuple[MLPRouter, MLPRouter]
"""Networks on the characters and on the last words."""
HeldOut = tuple[Float[Tensor, "m d"], Int[Tensor, " m"]]
"""The same of other rows."""


@dataclass(frozen=True)
class Outcomes:
    """Vectors of n prompts, and the outcome of each: the index of its expert, or the number of experts for none.

    `wording`: counts for the guard's networks on characters and last words; None: it has none.
    `as_is`, `changed`: prompts of experts as they are, and in another form that keeps all words; these decide on
    the limit.
    """

    vectors: Float[Tensor, "n d"]
    wording: Float[Tensor, "n s"] | None
    labels: Int[Tensor, " n"]
    as_is: Bool[Tensor, " n"]
    changed: Bool[Tensor, " n"]


def train_guard(
    train: Outcomes,
    validation: Outcomes,
    num_experts: int,
    abstain: str | float,
    seed: int,
    together: bool = False,
    readers: Readers | None = None,
) -> tuple[Guard, dict[str, float]]:
    """A guard whose networks are at their best by validation, calibrated; and its validation metrics.

    The networks learn apart and their logits are added: what one has not seen, another may know. `abstain`: see
    `limit_of`. `together`: the features share one scale, as counts of characters do. `readers`: those of the wording
    (default: trained here).
    """
    counts = 0 if train.wording is None else train.wording.shape[1] // 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        guard = Guard(train.vectors.shape[1], num_experts, HIDDEN, counts)
    learn(guard.net, (train.vectors, train.labels), (validation.vectors, validation.labels), together, seed)
    if counts:
        guard.letters, guard.words = readers or train_readers(train, validation, num_experts, seed)
    with torch.no_grad():
        return calibrated(guard, guard.eval()(validation.vectors, validation.wording).outcomes, validation, abstain)


def train_readers(train: Outcomes, validation: Outcomes, num_experts: int, seed: int) -> Readers:
    """Networks on the characters and the last words of prompts, for the guards of all routers that read these."""
    assert train.wording is not None and validation.wording is not None

    def trained(taught: Tensor, held_out: Tensor) -> MLPRouter:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = MLPRouter(taught.shape[1], num_experts + 1, HIDDEN, dropout=0.1)
        learn(net, (taught, train.labels), (held_out, validation.labels), True, seed)
        return net

    letters, words = map(trained, train.wording.chunk(2, 1), validation.wording.chunk(2, 1))
    return letters, words


@torch.no_grad()
def give_voice(guard: Guard, logits: Float[Tensor, "n e"], held_out: Outcomes) -> Float[Tensor, "n e"]:
    """Let a guard have a voice beside a router of these logits on the experts' prompts; return the joint logits."""
    mine = held_out.labels < logits.shape[1]
    joint = logits + guard(held_out.vectors, held_out.wording).voice[mine]
    guard.joint.fill_(temperature_of(joint, held_out.labels[mine]))
    return joint / guard.joint


def learn(net: MLPRouter, train: Rows, validation: HeldOut, together: bool, seed: int) -> None:
    """Train a network to tell the outcomes of rows, each of which counts alike, whatever the number of its rows."""
    (vectors, labels), outcomes = train, net.outer.out_features
    net.mean.copy_(vectors.mean(0))
    net.deviation.copy_((vectors.std() if together else vectors.std(0)).clamp_min(1e-6))
    counts = torch.bincount(labels, minlength=outcomes).clamp_min(1)
    weights = len(labels) / (outcomes * counts)
    steps = math.ceil(len(labels) / BATCH)

    def batch(step: int) -> Tensor:
        epoch, place = divmod(step, steps)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
        return order[place * BATCH : (place + 1) * BATCH]

    def loss(rows: Tensor) -> tuple[Tensor, int]:
        net.train()
        return F.cross_entropy(net(vectors[rows]), labels[rows], weights) * len(rows), len(rows)

    @torch.no_grad()
    def validate() -> float:
        return F.cross_entropy(net.eval()(validation[0]), validation[1], weights).item()

    settings = Train(
        steps=EPOCHS * steps, evaluate_every=steps, batch=BATCH, lr=LR, weight_decay=DECAY, patience=PATIENCE
    )
    trained = fit(dict(net.named_parameters()), batch, loss, validate, settings, LR, lambda row: None, seed)
    net.load_state_dict(trained.state, strict=False)


@torch.no_grad()
def calibrated(
    guard: Guard, logits: Float[Tensor, "n outcomes"], held_out: Outcomes, abstain: str | float
) -> tuple[Guard, dict[str, float]]:
    """Set the temperature and the limit of a guard by logits for prompts that were not learned from."""
    guard.temperature.fill_(temperature_of(logits, held_out.labels))
    own = odds(logits / guard.temperature)
    guard.limit.fill_(limit_of(own, held_out, abstain))
    return guard, figures(own, held_out, guard.limit, logits.shape[1] - 1)


def temperature_of(logits: Float[Tensor, "n outcomes"], labels: Int[Tensor, " n"]) -> float:
    """The temperature that calibrates logits for rows that were not learned from.

    An outcome of m rows has the target probability (m + 1) / (m + 2), as in `few_shot`: where all can be told apart,
    certainty would have no bound. A single outcome has the probability 1 at every temperature.
    """
    if logits.shape[1] == 1:
        return 1.0
    size = logits.std().clamp_min(1e-6).item()  # the search has bounds, logits have none
    counts = torch.bincount(labels, minlength=logits.shape[1])
    doubt = (1 / (counts + 2)).mean().item() * logits.shape[1] / (logits.shape[1] - 1)
    return size * best_temperature(logits / size, labels, doubt)


def limit_of(own: Float[Tensor, " n"], held_out: Outcomes, abstain: str | float) -> float:
    """The log-odds below which a router abstains: those of the probability `abstain`.

    For "auto" even odds, so that the more probable of experts and base answers; but lower where these prompts do not
    show, with 95% confidence, that at most the share REFUSED of prompts as they are would be left to the base, and
    REFUSED_IN_OTHER_FORMS of changed ones. Of prompts with the same odds one counts.
    """
    if not isinstance(abstain, str):
        return logit(abstain)
    shares = ((held_out.as_is, REFUSED), (held_out.changed, REFUSED_IN_OTHER_FORMS))
    different = [(own[some].double().round(decimals=4).unique(), share) for some, share in shares if some.any()]
    return min(0.0, *(odds[refusable(len(odds), share)].item() for odds, share in different))


def refusable(prompts: int, share: float) -> int:
    """The most of so many prompts whose refusal still shows that at most the share of all are refused."""
    return max((some for some in range(prompts) if of_a_share(some, prompts, level=0.9)[1] <= share), default=0)


def figures(own: Float[Tensor, " n"], held_out: Outcomes, limit: Tensor, num_experts: int) -> dict[str, float]:
    """Shares of own and of neutral prompts on which the router abstains, and the AUROC of the two."""
    mine, silent = held_out.labels < num_experts, own < limit
    return {
        "abstained_own": silent[held_out.as_is].double().mean().item(),
        "abstained_neutral": silent[~mine].double().mean().item(),
        "auroc": auroc(own[mine].double().numpy(), own[~mine].double().numpy()),
    }
