"""The loss of a mixture itself as a function of its router's weights: what responses lose, and how that would change.

Knows nothing about routers. Base and experts are frozen, so a row's loss depends on its own weights alone: each call
finds the losses and their slopes in the weights, and hands on both as one straight line through them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moesaic.data.batches import Tokens, by_length, pad
from moesaic.model.decoder import Decoder
from moesaic.ops.losses import UNSCORED, token_nll
from moesaic.routing import Gates

Task = Callable[[Int[Tensor, " n"], Float[Tensor, "n e"]], tuple[Float[Tensor, " n"], Int[Tensor, " n"]]]
"""(which rows, their weights) -> the loss of each, through which gradients reach the weights, summed over how many
things (tokens, or the row itself)."""

CHUNK = 16  # rows that a model computes at once: all that has to be kept for a gradient


@dataclass(frozen=True)
class Losses:
    """What n rows lose under given weights: in sum, over how many things, and the slope of that in each weight."""

    sums: Float[Tensor, " n"]
    counts: Int[Tensor, " n"]
    slopes: Float[Tensor, "n e"] | None

    def at(self, weights: Float[Tensor, "n e"]) -> Float[Tensor, " n"]:
        """The sums, with the slopes as their gradient in `weights`, which they were computed under."""
        return self.sums if self.slopes is None else self.sums + ((weights - weights.detach()) * self.slopes).sum(-1)


Weighed = Callable[[Int[Tensor, " n"], Float[Tensor, "n e"], bool], Losses]
"""(which rows, their weights, whether slopes are wanted) -> what they lose."""

Nats = tuple[Float[Tensor, " n"], Int[Tensor, " n"]]
"""What each row of a batch loses, summed over how many things."""


@runtime_checkable
class Read(Protocol):
    """A row that a model reads."""

    @property
    def ids(self) -> list[int]: ...


R = TypeVar("R", bound=Read)


def language(decoder: Decoder, rows: list[Tokens]) -> Weighed:
    """The nats of each row's response from a decoder with the experts beside its linears, all of it frozen.

    The slopes are those of the sum over all experts, the unchosen ones too; without them only the chosen are computed.
    """

    def nats_of(some: list[Tokens], gates: Gates) -> Nats:
        batch = pad(some)
        nats = token_nll(decoder(batch.ids, None, gates).logits, batch.targets).sum(1)
        return nats, (batch.targets != UNSCORED).sum(1)

    return frozen(rows, nats_of, decoder.norm.weight.dtype)


def frozen(rows: Sequence[R], nats_of: Callable[[list[R], Gates], Nats], dtype: torch.dtype) -> Weighed:
    """What rows lose by `nats_of` a batch of them under gates of `dtype`; rows of like length are computed together."""

    def weighed(some: Int[Tensor, " n"], weights: Float[Tensor, "n e"], slopes: bool) -> Losses:
        sums, counts = weights.new_zeros(len(some)), torch.zeros(len(some), dtype=torch.long)
        steep = torch.zeros_like(weights) if slopes else None
        for batch in by_length([len(rows[row].ids) for row in some.tolist()], CHUNK):
            places = torch.tensor(batch)
            with torch.set_grad_enabled(slopes):
                leaf = weights[places].detach().to(dtype).requires_grad_(slopes)
                gates = Gates.dense(leaf) if slopes else Gates.of(leaf)
                nats, scored = nats_of([rows[row] for row in some[places].tolist()], gates)
                if steep is not None:
                    (slope,) = torch.autograd.grad(nats.sum(), leaf)
                    steep[places] = slope.to(steep.dtype)
            sums[places], counts[places] = nats.detach().to(sums.dtype), scored
        return Losses(sums, counts, steep)

    return weighed


def computed(weighed: Weighed) -> Task:
    """The task of any weights: what they lose is computed at every call."""

    def task(rows: Int[Tensor, " n"], weights: Float[Tensor, "n e"]) -> tuple[Tensor, Tensor]:
        losses = weighed(rows, weights.detach(), torch.is_grad_enabled() and weights.requires_grad)
        return losses.at(weights), losses.counts

    return task


@dataclass(frozen=True)
class Table:
    """What n rows lose with each of e experts alone, and the slopes there: all that weights of 0 and 1 can ask for."""

    sums: Float[Tensor, "n e"]
    counts: Int[Tensor, " n"]
    slopes: Float[Tensor, "n e e"] | None

    @staticmethod
    def of(weighed: Weighed, n: int, num_experts: int, slopes: bool, told: Callable[[int], None]) -> "Table":
        """Computed once; `told` hears how many (row, expert) pairs are done."""
        rows, alone = torch.arange(n), torch.eye(num_experts)
        found: list[Losses] = []
        for expert in range(num_experts):
            found.append(weighed(rows, alone[expert].expand(n, -1), slopes))
            told(n * (expert + 1))
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
        """The task of weights that are 1 for one expert and 0 for the others."""
        chosen = weights.detach().argmax(-1)
        slopes = None if self.slopes is None else self.slopes[rows, chosen]
        losses = Losses(self.sums[rows, chosen], self.counts[rows], slopes)
        return losses.at(weights), losses.counts
