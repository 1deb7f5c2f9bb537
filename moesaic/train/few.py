"""Linear routers and trees of them from a few prompts of each expert, in closed form, cross-validated on held-out ones.

Knows nothing about where features come from, nor which experts they belong to.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from moesaic.routing.guard import Guard
from moesaic.routing.routers import MLPRouter, TrainedRouter, TreeRouter
from moesaic.train.guards import Outcomes, calibrated
from moesaic.train.routers import best_temperature

FOLDS = 10


@dataclass(frozen=True)
class Judged:
    """Cross-validation by expert: the number of held-out prompts routed right (`right`), out of `of`."""

    right: list[int]
    of: list[int]

    @property
    def accuracy(self) -> float:
        return sum(right / of for right, of in zip(self.right, self.of, strict=True)) / len(self.of)


@torch.no_grad()
def few_shot(features: list[Float[Tensor, "_ d"]]) -> tuple[MLPRouter, Judged]:
    """A router from each expert's features, at least two per expert, with a temperature calibrated on held-out prompts.

    Each fold holds out a tenth of every expert's prompts; with fewer than ten, one prompt. A label of m prompts has the
    target probability (m + 1) / (m + 2), after Platt ("Probabilistic Outputs for Support Vector Machines", 1999,
    section 2.2).
    """
    e, sizes = len(features), [len(rows) for rows in features]
    labels = torch.arange(e).repeat_interleave(torch.tensor(sizes))
    logits = held_out(features, discriminant)
    router = discriminant(features)
    doubt = sum(1 / (m + 2) for m in sizes) / e
    size = logits.std().clamp_min(1e-6).item()  # the search has bounds, logits have none
    router.temperature.fill_(size * best_temperature(logits / size, labels, doubt * e / (e - 1)))
    return router, judged(logits, sizes)


@torch.no_grad()
def few_shot_tree(features: list[Float[Tensor, "_ d"]], groups: Sequence[Sequence[int]]) -> tuple[TreeRouter, Judged]:
    """A tree of such routers, between the groups and inside each group of several, each calibrated by itself."""

    def parts(given: list[Float[Tensor, "_ d"]]) -> list[list[Float[Tensor, "_ d"]]]:
        inside = [[given[expert] for expert in members] for members in groups]
        return [[torch.cat(some) for some in inside], *(some for some in inside if len(some) > 1)]

    def tree(nodes: Sequence[MLPRouter]) -> TreeRouter:
        made = TreeRouter(features[0].shape[1], len(features), [[*members] for members in groups], [])
        for node, router in zip(made.nodes, nodes, strict=True):
            node.router.load_state_dict(router.state_dict())
        return made.eval()

    def fitted(given: list[Float[Tensor, "_ d"]]) -> TreeRouter:
        made = [discriminant(some) for some in parts(given)]
        for router, whole in zip(made, nodes, strict=True):
            router.temperature.copy_(whole.temperature)
        return tree(made)

    nodes = [few_shot(some)[0] for some in parts(features)]
    return tree(nodes), judged(held_out(features, fitted), [len(rows) for rows in features])


def held_out(
    features: list[Float[Tensor, "_ d"]], fitted: Callable[[list[Float[Tensor, "_ d"]]], TrainedRouter]
) -> Float[Tensor, "n e"]:
    """The logits of every prompt by a router that was fitted without the prompt's fold."""
    sizes = [len(rows) for rows in features]
    labels, everything = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)), torch.cat(features)
    fold = torch.cat([torch.arange(size) for size in sizes]) % min(FOLDS, *sizes)
    logits = everything.new_zeros(len(labels), len(sizes))
    for one in range(int(fold.max()) + 1):
        out = fold == one
        kept = [everything[(labels == label) & ~out] for label in range(len(sizes))]
        logits[out] = fitted(kept)(everything[out])
    return logits


def judged(logits: Float[Tensor, "n e"], sizes: list[int]) -> Judged:
    """How many of each expert's prompts go to it by these logits."""
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    hits = logits.argmax(-1) == labels
    return Judged([int(hits[labels == label].sum()) for label in range(len(sizes))], sizes)


@torch.no_grad()
def few_shot_guard(
    features: list[Float[Tensor, "_ d"]], neutral: Float[Tensor, "_ d"], abstain: str | float
) -> tuple[Guard, dict[str, float]]:
    """A guard from the same features and those of neutral prompts, calibrated and limited in cross-validation."""
    parts, e = [*features, neutral], len(features)
    sizes = [len(rows) for rows in parts]
    labels, everything = torch.arange(e + 1).repeat_interleave(torch.tensor(sizes)), torch.cat(parts)
    logits = held_out(parts, discriminant)
    guard = Guard(everything.shape[1], e, [])
    guard.net.load_state_dict(discriminant(parts).state_dict())
    outcomes = Outcomes(everything, None, labels, labels < e, torch.zeros(len(labels), dtype=torch.bool))
    return calibrated(guard.eval(), logits, outcomes, abstain)


def discriminant(features: list[Float[Tensor, "_ d"]]) -> MLPRouter:
    """Linear discriminant analysis, every expert as probable as any other.

    The covariance within experts is shrunk towards a multiple of the identity as by Ledoit and Wolf, "A
    well-conditioned estimator for large-dimensional covariance matrices" (2004), section 3.3.
    """
    means = torch.stack([rows.double().mean(0) for rows in features])
    inside = torch.cat([rows.double() - mean for rows, mean in zip(features, means, strict=True)])
    n, d = inside.shape
    gram, power = inside @ inside.t(), inside.square().sum(1)
    size, spread = power.sum() / n / d, gram.square().sum() / n**2
    distance = spread / d - size**2
    noise = (power.square().sum() / n - spread) / d / n
    shrunk = (noise / distance).clamp(0, 1) if distance > 0 else size.new_ones(())
    floor = (shrunk * size).clamp_min(1e-12)

    centre = means.mean(0)
    means = means - centre
    # (floor I + (1 - shrunk) X^T X / n)^-1 M^T by Woodbury's identity, which inverts an n x n matrix only.
    inner = n * floor * torch.eye(n, dtype=gram.dtype) + (1 - shrunk) * gram
    weight = (means - (1 - shrunk) * torch.linalg.solve(inner, inside @ means.t()).t() @ inside) / floor
    router = MLPRouter(d, len(features), [])
    router.mean.copy_(centre)
    router.outer.weight.copy_(weight)
    router.outer.bias.copy_(-0.5 * (means * weight).sum(1))
    return router.eval()
