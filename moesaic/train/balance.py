"""Keeps the experts of sparse layers evenly loaded: a loss, or a bias of the choice that moves after every step.

Each layer is balanced by itself, over the global batch: the micro-batches of one optimiser step in all processes.
Knows nothing about optimisers or data.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from moesaic.adapters.slots import slots_of
from moesaic.model.decoder import Decoder
from moesaic.nn import SparseFFN
from moesaic.ops.expert_load import balance_loss, choices, thresholds, towards_equal, towards_thresholds
from moesaic.ops.losses import router_z
from moesaic.routing import Routing
from moesaic.train.ranks import ALONE, Ranks

B = TypeVar("B")
Routings = Sequence[Routing | None]
Real = Bool[Tensor, " n"] | None
"""Which tokens of a batch are no padding; None: all."""


def decided(routings: Routings, real: Real = None) -> list[Routing]:
    """The decisions of the sparse layers, without those of padding."""
    found = [routing for routing in routings if routing is not None]
    return found if real is None else [routing[real] for routing in found]


def counts_of(routings: Routings, real: Real = None) -> Float[Tensor, "l e"]:
    """How often each sparse layer chose each expert."""
    return torch.stack([choices(routing.weights) for routing in decided(routings, real)]).double()


def loss_of_balance(
    decoder: Decoder,
    routings: Routings,
    counts: Float[Tensor, "l e"] | None = None,
    real: Real = None,
    weight: float = 0.01,
    z_weight: float = 0.001,
) -> Float[Tensor, ""]:
    """The loss of a micro-batch for balance, and for small logits, on average over the sparse layers.

    `counts`: of the global batch, see `with_counts`; None: this micro-batch is all of it.
    """
    layers, own = slots_of(decoder, SparseFFN).values(), decided(routings, real)
    whole = counts_of(own) if counts is None else counts
    total = torch.zeros((), device=whole.device)
    for layer, routing, of_layer in zip(layers, own, whole, strict=True):
        scores = layer.scores(routing.logits.float())
        shares = scores / scores.sum(-1, keepdim=True)
        total = total + weight * balance_loss(shares, of_layer) + z_weight * router_z(routing.logits.float())
    return total / len(own)


def with_counts(
    batch: Callable[[int], B], decide: Callable[[B], Routings], accumulate: int, ranks: Ranks = ALONE
) -> Callable[[int], tuple[B, Float[Tensor, "l e"] | None]]:
    """Micro-batch i, together with the counts of the global batch that it belongs to.

    The counts are needed before the first backward pass of a step. Where a step has several micro-batches, each is
    therefore read once more, without gradients; where it has one, its own counts are all, and none are given.
    """
    if accumulate == 1:
        return lambda i: (batch(i), None)
    known: dict[int, Tensor] = {}

    @torch.no_grad()
    def counts(step: int) -> Tensor:
        if step not in known:
            known.clear()
            own = [counts_of(decide(batch(i))) for i in ranks.own(step * accumulate, accumulate)]
            known[step] = summed(torch.stack(own).sum(0), ranks)
        return known[step]

    return lambda i: (batch(i), counts(i // accumulate))


def summed(values: Tensor, ranks: Ranks) -> Tensor:
    """Values of all processes together."""
    return torch.tensor(ranks.summed(*values.flatten().tolist()), dtype=values.dtype).view_as(values)


class Rule(ABC):
    """How the bias of a layer moves: what is measured in each micro-batch, and what follows from all of them."""

    @abstractmethod
    def measured(
        self, scores: Float[Tensor, "n e"], weights: Float[Tensor, "n e"], bias: Float[Tensor, " e"], chosen: int
    ) -> Float[Tensor, " e"]:
        """Of the tokens of a micro-batch; summed over those of a step."""

    @abstractmethod
    def moved(self, bias: Float[Tensor, " e"], total: Float[Tensor, " e"], batches: float) -> Float[Tensor, " e"]:
        """The bias after a step, from the sum over its micro-batches."""


@dataclass(frozen=True)
class SignBias(Rule):
    """Each expert's bias moves by `rate`, up where it was chosen less than the mean. arXiv 2408.15664.

    A rate of 0.001 is for long trainings; in a few hundred steps it moves sigmoid scores by a few tenths.
    """

    rate: float = 1e-3

    def measured(self, scores: Tensor, weights: Tensor, bias: Tensor, chosen: int) -> Tensor:
        return choices(weights).double()

    def moved(self, bias: Tensor, total: Tensor, batches: float) -> Tensor:
        return towards_equal(bias, total, self.rate)


@dataclass(frozen=True)
class Quantiles(Rule):
    """Each bias moves by the share `pace` of its way to where the expert would have had its share of the tokens."""

    pace: float = 0.1

    def measured(self, scores: Tensor, weights: Tensor, bias: Tensor, chosen: int) -> Tensor:
        return thresholds(scores, bias, chosen).double()

    def moved(self, bias: Tensor, total: Tensor, batches: float) -> Tensor:
        return towards_thresholds(bias, (total / batches).to(bias), self.pace)


class Balancer:
    """Moves the biases of a decoder's sparse layers by a rule: call `see` for each micro-batch, `step` for each step.

    Between two steps nothing is held but the biases, which are parameters of the decoder.
    """

    def __init__(self, decoder: Decoder, rule: Rule, ranks: Ranks = ALONE):
        self.layers, self.rule, self.ranks = [*slots_of(decoder, SparseFFN).values()], rule, ranks
        self.totals: list[Tensor] = []

    @torch.no_grad()
    def see(self, routings: Routings, real: Real = None) -> None:
        """Measure a micro-batch, once: not again when activations are recomputed."""
        measured = []
        for layer, routing in zip(self.layers, decided(routings, real), strict=True):
            scores, bias = layer.scores(routing.logits.float()), self.ranks.full(bias_of(layer))
            measured.append(self.rule.measured(scores, routing.weights, bias, layer.chosen))
        self.totals.append(torch.stack(measured))

    @torch.no_grad()
    def step(self) -> None:
        """Move the biases, after a step of the optimiser."""
        total = summed(torch.stack(self.totals).sum(0), self.ranks)
        (batches,) = self.ranks.summed(len(self.totals))
        self.totals = []
        for layer, of_layer in zip(self.layers, total, strict=True):
            bias = bias_of(layer)
            moved = self.rule.moved(self.ranks.full(bias), of_layer, batches)
            self.ranks.local(bias).copy_(self.ranks.local(self.ranks.placed(moved, like=bias)))


def bias_of(layer: SparseFFN) -> Tensor:
    assert layer.balance_bias is not None, "the decoder's config has no balance_bias"
    return layer.balance_bias
