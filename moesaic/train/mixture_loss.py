"""The loss of a mixture itself as a function of its router's weights, with the slope of each row's loss in its weights.

Knows nothing about routers. Base and experts are frozen, so a row's loss depends on its own weights alone: each call
computes the losses and their slopes in the weights, and returns both as one straight line through them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moesaic.data.batches import Tokens, by_length, pad
from moesaic.hardware import exact
from moesaic.model.decoder import Decoder
from moesaic.ops.losses import UNSCORED
from moesaic.routing import Gates

WeightedLoss = Callable[[Int[Tensor, " n"], Float[Tensor, "n e"]], tuple[Float[Tensor, " n"], Int[Tensor, " n"]]]
"""(indices of rows, their weights) -> the summed loss of each row, through which gradients reach the weights, and the
number of summands (tokens, or the row itself)."""

CHUNK = 16  # rows that a model computes at once: a gradient needs the activations of all of them


@dataclass(frozen=True)
class Losses:
    """Losses of n rows under given weights: their sums, the numbers of summands, and the slope in each weight."""

    sums: Float[Tensor, " n"]
    counts: Int[Tensor, " n"]
    slopes: Float[Tensor, "n e"] | None

    def at(self, weights: Float[Tensor, "n e"]) -> Float[Tensor, " n"]:
        """The sums, with the slopes as their gradient in `weights`, which the sums were computed under."""
        return self.sums if self.slopes is None else self.sums + ((weights - weights.detach()) * self.slopes).sum(-1)


Weighed = Callable[[Int[Tensor, " n"], Float[Tensor, "n e"], bool], Losses]
"""(indices of rows, their weights, whether to compute slopes) -> their losses."""

Nats = tuple[Float[Tensor, ""], Float[Tensor, " n"], Int[Tensor, " n"]]
"""The summed loss of a batch, with a gradient; that of each row; and the number of summands of each."""


@runtime_checkable
class HasIds(Protocol):
    """A row of token ids."""

    @property
    def ids(self) -> list[int]: ...


R = TypeVar("R", bound=HasIds)


def language(decoder: Decoder, rows: list[Tokens]) -> Weighed:
    """The nats of each row's response under a frozen decoder with the experts beside its linears.

    The slopes are those of the sum over all experts, unchosen ones included; without slopes only the chosen experts
    compute.
    """

    def nats_of(some: list[Tokens], gates: Gates) -> Nats:
        batch = pad(some).on(decoder.norm.weight.device)
        scored = decoder(batch.ids, None, gates, None, batch.scored)
        return scored.nats, scored.rows, (batch.targets != UNSCORED).sum(1)

    return frozen(rows, nats_of, decoder.norm.weight)


def frozen(rows: Sequence[R], nats_of: Callable[[list[R], Gates], Nats], like: Tensor) -> Weighed:
    """Losses by `nats_of` of a batch of rows under gates on the device of `like` and in its type, float32 at least.

    Rows of similar length share a batch.
    """

    def weighed(some: Int[Tensor, " n"], weights: Float[Tensor, "n e"], slopes: bool) -> Losses:
        sums, counts = weights.new_zeros(len(some)), torch.zeros(len(some), dtype=torch.long)
        steep = torch.zeros_like(weights) if slopes else None
        for batch in by_length([len(rows[row].ids) for row in some.tolist()], CHUNK):
            places = torch.tensor(batch)
            with torch.set_grad_enabled(slopes):
                leaf = weights[places].detach().to(like.device, exact(like.dtype)).requires_grad_(slopes)
                gates = Gates.dense(leaf) if slopes else Gates.of(leaf)
                total, nats, scored = nats_of([rows[row] for row in some[places].tolist()], gates)
                if steep is not None:
                    (slope,) = torch.autograd.grad(total, leaf)
                    steep[places] = slope.to(steep)
            sums[places], counts[places] = nats.detach().to(sums), scored.to(counts)
        return Losses(sums, counts, steep)

    return weighed


def computed(weighed: Weighed) -> WeightedLoss:
    def loss(rows: Int[Tensor, " n"], weights: Float[Tensor, "n e"]) -> tuple[Tensor, Tensor]:
        losses = weighed(rows, weights.detach(), torch.is_grad_enabled() and weights.requires_grad)
        return losses.at(weights), losses.counts

    return loss


@dataclass(frozen=True)
class Table:
    """Losses of n rows with each of e experts alone, and the slopes there: a `WeightedLoss` for weights of 0 and 1."""

    sums: Float[Tensor, "n e"]
    counts: Int[Tensor, " n"]
    slopes: Float[Tensor, "n e e"] | None

    @staticmethod
    def of(weighed: Weighed, n: int, num_experts: int, slopes: bool, progress: Callable[[int], None]) -> "Table":
        """Compute every entry; `progress` is called with the number of (row, expert) pairs that are done."""
        rows, alone, found = torch.arange(n), torch.eye(num_experts), list[Losses]()
        for expert in range(num_experts):
            found.append(weighed(rows, alone[expert].expand(n, -1), slopes))
            progress(n * (expert + 1))
        steep = torch.stack([one.slopes for one in found if one.slopes is not None], 1) if slopes else None
        return Table(torch.stack([one.sums for one in found], 1), found[0].counts, steep)

    @staticmethod
    def cat(parts: list["Table"]) -> "Table":
        steep = [part.slopes for part in parts if part.slopes is not None]
        sums, counts = torch.cat([part.sums for part in parts]), torch.cat([part.counts for part in parts])
        return Table(sums, counts, torch.cat(steep) if steep else None)

    def __getitem__(self, rows: slice) -> "Table":
        return Table(self.sums[rows], self.counts[rows], None if self.slopes is None else self.slopes[rows])

    def __call__(self, rows: Int[Tensor, " n"], weights: Float[Tensor, "n e"]) -> tuple[Tensor, Tensor]:
        chosen = weights.detach().argmax(-1)
        slopes = None if self.slopes is None else self.slopes[rows, chosen]
        losses = Losses(self.sums[rows, chosen], self.counts[rows], slopes)
        return losses.at(weights), losses.counts
