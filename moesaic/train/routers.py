"""Training routers on features read once: words, centroids, or layers by gradient; then calibration on validation.

Knows nothing about where features come from: the inputs are states or texts, the index of each row's expert, and the
mixture's loss on a row as a function of its weights.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from moesaic.config import COUNTS
from moesaic.ops.losses import load_balancing, router_z
from moesaic.ops.metrics import f1_by_label, tallies
from moesaic.routing import Selection
from moesaic.routing.exploration import gumbel_choice, noisy
from moesaic.routing.routers import (
    AttentionRouter,
    CentroidRouter,
    KeywordRouter,
    LayeredRouter,
    MLPRouter,
    TrainedRouter,
    TreeRouter,
)
from moesaic.routing.states import Features, picked, vectors_of
from moesaic.sections.routers import RouterSpec
from moesaic.sections.training import Train
from moesaic.train.centroids import begin_at, reach
from moesaic.train.checkpoint import Checkpoint
from moesaic.train.loop import Record, fit
from moesaic.train.mixture_loss import WeightedLoss

Learned = LayeredRouter | TreeRouter
"""Routers that are trained by gradient."""

Groups = Sequence[Sequence[int]]
"""Indices of the experts in each group of a tree."""

L = TypeVar("L", LayeredRouter, MLPRouter, TreeRouter)

WORDS = 20  # of each expert's keywords
SMOOTHING = 0.1
"""Label smoothing for the first temperature of a router that starts at centroids: rows that are all separable would
otherwise make it certain, and certainty has no gradient."""


@dataclass(frozen=True)
class Labelled:
    """Features of n prompts and the index of the expert each belongs to.

    `means`: the means of their states, which learned noise reads. `task`: the mixture's loss on the prompts.
    """

    features: Features
    labels: Int[Tensor, " n"]
    means: Float[Tensor, "n d"] | None = None
    task: WeightedLoss | None = None


def train_router(
    spec: RouterSpec,
    train: Labelled,
    validation: Labelled,
    words: dict[int, list[str]],
    num_experts: int,
    seed: int,
    record: Record,
    checkpoint: Checkpoint | None = None,
    groups: Groups = (),
) -> tuple[TrainedRouter, dict[str, float]]:
    """A router of the kind that `spec` names, at its best by validation, calibrated; and its validation metrics.

    The best router has the lowest loss of the task if the training uses that loss, else the highest macro-F1. Weights
    that the task's loss has learned are not calibrated, unless the selection is `certain`.
    `words`: the keywords declared for some experts; those of the others are learned, except with `match: first`.
    `groups`: those of a tree.
    """
    if isinstance(train.features, list):
        first = spec.match == "first"
        learned = [[]] * num_experts if first else learn_words(train.features, train.labels, num_experts)
        router: TrainedRouter = KeywordRouter([words.get(e, learned[e]) for e in range(num_experts)], first)
        return router.eval(), metrics(router, validation, num_experts)
    if isinstance(train.features, Tensor) and spec.kind == "centroid":
        router = fit_centroids(train.features, train.labels, num_experts)
    else:
        router = fit_layers(spec, train, validation, num_experts, seed, record, checkpoint, groups)
    router.eval()
    found = before = metrics(router, validation, num_experts)
    if spec.certain or not spec.loss.task:
        calibrate(router, validation)
        found = metrics(router, validation, num_experts)
    if spec.loss.task:
        found |= {"task": task_loss(router, validation, selection_of(spec))}
    return router, {**found, "nll_uncalibrated": before["nll"], "temperature": router.hottest}


def calibrate(router: TrainedRouter, held_out: Labelled) -> None:
    """Set the temperature of every decision inside a router by the rows whose expert it can choose."""
    for node in router.nodes:
        outcome = {expert: index for index, some in enumerate(node.outcomes) for expert in some}
        rows = torch.tensor([row for row, expert in enumerate(held_out.labels.tolist()) if expert in outcome])
        labels = torch.tensor([outcome[expert] for expert in held_out.labels[rows].tolist()])
        logits = node.router(picked(held_out.features, rows))
        node.router.get_buffer("temperature").fill_(best_temperature(logits, labels))


def fit_centroids(features: Float[Tensor, "n d"], labels: Int[Tensor, " n"], num_experts: int) -> CentroidRouter:
    """Means of each expert's examples, centred on the mean of those means: every expert counts alike."""
    means = torch.stack([features[labels == e].mean(0) for e in range(num_experts)])
    router = CentroidRouter(means.shape[1], num_experts)
    router.centre.copy_(means.mean(0))
    router.centroids.copy_(means - means.mean(0))
    return router


def fit_layers(
    spec: RouterSpec,
    train: Labelled,
    validation: Labelled,
    num_experts: int,
    seed: int,
    record: Record,
    checkpoint: Checkpoint | None = None,
    groups: Groups = (),
) -> Learned:
    """A router by gradient: the recipe's weighted losses, and its exploration, which draws by (seed, step) alone.

    With `mix: balanced` all experts weigh the same: rows of an expert with few examples count more.
    """
    features, labels = train.features, train.labels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        router = untrained(spec, vectors_of(features), labels, num_experts, groups)
    means = torch.empty(0)
    if router.noise is not None:
        assert train.means is not None
        means = (train.means - train.means.mean(0)) / train.means.std(0).clamp_min(1e-6)
    counts = torch.bincount(labels, minlength=num_experts).clamp_min(1)
    weights = len(labels) / (num_experts * counts) if spec.mix == "balanced" else torch.ones(num_experts)
    select = selection_of(spec)
    steps = math.ceil(len(labels) / spec.batch)

    def batch(step: int) -> Tensor:
        epoch, place = divmod(step, steps)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
        return order[place * spec.batch : (place + 1) * spec.batch]

    def loss(rows: Tensor) -> tuple[Tensor, int]:
        router.train()
        logits = router(picked(features, rows))
        if router.noise is not None:
            logits = noisy(logits, router.noise(means[rows]))
        expert = F.cross_entropy(logits, labels[rows], weights)
        total = spec.loss.expert * expert + spec.loss.balance * load_balancing(logits) + spec.loss.z * router_z(logits)
        if spec.loss.task:
            assert train.task is not None
            drawn = spec.exploration.kind == "gumbel"
            chosen = gumbel_choice(logits, spec.exploration.temperature) if drawn else select(logits).weights
            # Where the true gradient is 0, the optimiser would follow the rounding errors.
            lost, of = train.task(rows, chosen.detach() if spec.untaught else chosen)
            counted = weights[labels[rows]]
            total = total + spec.loss.task * (counted * lost).sum() / (counted * of).sum()
        return total * len(rows), len(rows)

    latest: dict[str, float] = {}

    def validate() -> float:
        # Macro-F1 decides, the lower loss breaks ties. A loss of the task decides alone.
        found = metrics(router.eval(), validation, num_experts)
        latest["score"] = found["macro_f1"] - 1e-3 * min(found["nll"], 10.0)
        if spec.loss.task:
            latest["task"] = task_loss(router, validation, select)
        return latest.get("task", -latest["score"])

    shared = spec.model_dump(include={"batch", "lr", "weight_decay", "patience"})
    settings = Train(steps=spec.epochs * steps, evaluate_every=steps, **shared)

    def scored(row: dict[str, Any]) -> None:
        # The loop minimises; the log shows figures that rise.
        row = dict(row)
        record(row | latest if row.pop("validation", None) is not None else row)

    parameters = dict(router.named_parameters())
    trained = fit(parameters, batch, loss, validate, settings, spec.lr, scored, seed, checkpoint)
    router.load_state_dict(trained.state, strict=False)
    return router


def untrained(
    spec: RouterSpec,
    vectors: Float[Tensor, "m d"],
    labels: Int[Tensor, " n"],
    num_experts: int,
    groups: Groups = (),
) -> Learned:
    """A router before its first step, random or at centroids, that standardises by these vectors."""
    if spec.kind == "tree":
        tree = TreeRouter(vectors.shape[1], num_experts, [[*some] for some in groups], spec.hidden, spec.dropout)
        return standardised(tree, spec, vectors)
    if spec.init != "centroids":
        return standardised(fresh(spec, vectors.shape[1], num_experts), spec, vectors)
    router = standardised(layered(spec, vectors.shape[1], num_experts), spec, vectors)
    centroids = fit_centroids(vectors, labels, num_experts)
    scores, usual = reach(centroids, vectors)
    begin_at(router, centroids, 1 / best_temperature(scores, labels, SMOOTHING), usual)
    return router


def standardised(router: L, spec: RouterSpec, vectors: Float[Tensor, "m d"]) -> L:
    # Counts of characters are mostly 0: divided by its own deviation, a rare one would outweigh all others.
    deviation = vectors.std() if spec.feature in COUNTS else vectors.std(0)
    for node in router.nodes:
        node.router.get_buffer("mean").copy_(vectors.mean(0))
        node.router.get_buffer("deviation").copy_(deviation.clamp_min(1e-6))
    return router


def fresh(spec: RouterSpec, num_features: int, num_experts: int) -> LayeredRouter:
    if spec.kind != "attention":
        return layered(spec, num_features, num_experts)
    return AttentionRouter(num_features, num_experts, spec.hidden[0], spec.heads, spec.dropout, noisy_logits(spec))


def layered(spec: RouterSpec, num_features: int, num_experts: int) -> MLPRouter:
    hidden = spec.hidden if spec.kind == "mlp" else []
    return MLPRouter(num_features, num_experts, hidden, spec.dropout, spec.bias, noisy_logits(spec))


def noisy_logits(spec: RouterSpec) -> bool:
    return spec.exploration.kind == "noisy_top_k"


def selection_of(spec: RouterSpec) -> Selection:
    return Selection(kind=spec.selection, k=spec.k, renormalise=spec.renormalise)


@torch.no_grad()
def task_loss(router: TrainedRouter, rows: Labelled, select: Selection) -> float:
    """The mixture's mean loss on rows that this router decides, as in generation."""
    assert rows.task is not None
    lost, of = rows.task(torch.arange(len(rows.labels)), select(router(rows.features)).weights)
    return (lost.double().sum() / of.sum()).item()


@torch.no_grad()
def metrics(router: TrainedRouter, rows: Labelled, num_experts: int) -> dict[str, float]:
    """Accuracy, macro-F1 and nats per decision; abstaining counts as wrong."""
    return scored(router(rows.features), rows.labels, num_experts)


@torch.no_grad()
def scored(logits: Float[Tensor, "n e"], labels: Int[Tensor, " n"], num_experts: int) -> dict[str, float]:
    """The same of logits; a row of -inf abstains."""
    silent = torch.isneginf(logits).all(-1)
    best = torch.where(silent, -1, logits.argmax(-1))
    log_probabilities = logits.masked_fill(silent[:, None], 0.0).clamp_min(-1e4).log_softmax(-1)
    sums = tallies(labels.numpy(), best.numpy(), num_experts).sum(0)
    return {
        "accuracy": (best == labels).double().mean().item(),
        "macro_f1": f1_by_label(sums).mean().item(),
        "nll": F.nll_loss(log_probabilities, labels).item(),
    }


@torch.no_grad()
def best_temperature(logits: Float[Tensor, "n e"], labels: Int[Tensor, " n"], smoothing: float = 0.0) -> float:
    """The temperature of lowest validation loss, by golden section on its logarithm: the loss is convex in 1/T.

    On Calibration of Modern Neural Networks (arXiv 1706.04599), section 4.2. `smoothing`: the share of each label that
    is spread evenly over all experts.
    """
    ratio, low, high = (math.sqrt(5) - 1) / 2, math.log(1e-3), math.log(1e3)
    logits = logits.double()

    def loss(log_temperature: float) -> float:
        return F.cross_entropy(logits / math.exp(log_temperature), labels, label_smoothing=smoothing).item()

    for _ in range(60):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    return math.exp((low + high) / 2)


def learn_words(texts: list[str], labels: Int[Tensor, " n"], num_experts: int) -> list[list[str]]:
    """Each expert's words of highest log-odds of occurring in its own prompts, against all others'."""
    documents = [Counter[str]() for _ in range(num_experts)]
    for text, label in zip(texts, labels.tolist(), strict=True):
        documents[label].update(set(re.findall(r"[^\W\d_]{2,}", text.lower())))
    sizes = torch.bincount(labels, minlength=num_experts).tolist()
    everywhere = sum(documents, Counter[str]())

    def odds(word: str, expert: int) -> float:
        inside, size = documents[expert][word], sizes[expert]
        outside, others = everywhere[word] - inside, len(labels) - size
        return math.log((inside + 0.5) / (size + 1)) - math.log((outside + 0.5) / (others + 1))

    def typical(expert: int) -> list[str]:
        common = [word for word, count in documents[expert].items() if count >= max(2, sizes[expert] // 50)]
        return sorted(common, key=lambda word: (-odds(word, expert), word))[:WORDS]

    return [typical(expert) for expert in range(num_experts)]
