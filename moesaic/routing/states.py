"""Features of prompts (vectors, texts, or unpooled states of their tokens), and the operations on all three.

Features hold no padding, so pooling cannot count any. Knows nothing about models.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from moesaic.errors import RecipeError
from moesaic.ops.host import to_host


@dataclass(frozen=True)
class States:
    """The states of all m tokens of n prompts, concatenated, and the number of tokens of each prompt."""

    values: Float[Tensor, "m d"]
    lengths: Int[Tensor, " n"]

    @staticmethod
    def of(x: Float[Tensor, "n t d"], lengths: Int[Tensor, " n"]) -> "States":
        """Take the states of a right-padded batch, without the padding."""
        starts = torch.arange(len(x), device=x.device) * x.shape[1]
        return States(x.flatten(0, 1).index_select(0, spots(starts, lengths)), lengths)

    @staticmethod
    def cat(parts: list["States"]) -> "States":
        return States(torch.cat([part.values for part in parts]), torch.cat([part.lengths for part in parts]))

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, rows: slice | Int[Tensor, " g"] | Bool[Tensor, " n"]) -> "States":
        """The states of these prompts, in the order given."""
        lengths = self.lengths[rows]
        return States(self.values[spots((self.lengths.cumsum(0) - self.lengths)[rows], lengths)], lengths)

    @property
    def owners(self) -> Int[Tensor, " m"]:
        rows = torch.arange(len(self), device=self.lengths.device)
        return rows.repeat_interleave(self.lengths, output_size=len(self.values))

    def mean(self) -> Float[Tensor, "n d"]:
        return self.added(self.values) / self.lengths[:, None]

    def added(self, values: Float[Tensor, "m *rest"]) -> Float[Tensor, "n *rest"]:
        return values.new_zeros(len(self), *values.shape[1:]).index_add(0, self.owners, values)

    def shares(self, scores: Float[Tensor, "m h"]) -> Float[Tensor, "m h"]:
        owners = self.owners
        highest = scores.new_full((len(self), scores.shape[1]), float("-inf"))
        highest = highest.scatter_reduce(0, owners[:, None].expand_as(scores), scores.detach(), "amax")
        sizes = (scores - highest[owners]).exp()
        return sizes / self.added(sizes)[owners]


def spots(starts: Int[Tensor, " n"], lengths: Int[Tensor, " n"]) -> Int[Tensor, " m"]:
    """The positions of the tokens of n prompts, each from its start; waits for the device, for their number."""
    m = to_host(lengths.sum())
    shifts = starts - (lengths.cumsum(0) - lengths)
    return torch.arange(m, device=lengths.device) + shifts.repeat_interleave(lengths, output_size=m)


Features = Float[Tensor, "_ _"] | States | list[str]
"""Features of n prompts: a vector of each, the states of its tokens, or its text."""


@dataclass(frozen=True)
class Form:
    """The operations on one form of features."""

    joined: Callable[[list[Any]], Any]
    picked: Callable[[Any, Int[Tensor, " g"]], Any]
    means: Callable[[Any], Float[Tensor, "n d"] | None]
    vectors: Callable[[Any], Float[Tensor, "m d"]]
    on_host: Callable[[Any], Any]


def _without_vectors(texts: list[str]) -> Float[Tensor, "m d"]:
    raise RecipeError("texts have no vectors to learn from", field="feature", got="text")


FORMS = {
    Tensor: Form(
        joined=torch.cat,
        picked=lambda vectors, rows: vectors[rows],
        means=lambda own: own,
        vectors=lambda own: own,
        on_host=Tensor.cpu,
    ),
    States: Form(
        joined=States.cat,
        picked=States.__getitem__,
        means=States.mean,
        vectors=lambda states: states.values,
        on_host=lambda states: States(states.values.cpu(), states.lengths.cpu()),
    ),
    list: Form(
        joined=lambda parts: list(chain.from_iterable(parts)),
        picked=lambda texts, rows: [texts[row] for row in rows.tolist()],
        means=lambda texts: None,
        vectors=_without_vectors,
        on_host=lambda texts: texts,
    ),
}
"""Type of features -> what joins, picks, averages and flattens them, and takes them to the host."""


def joined(parts: list[Features]) -> Features:
    return FORMS[type(parts[0])].joined(parts)


def picked(features: Features, rows: Int[Tensor, " g"]) -> Features:
    return FORMS[type(features)].picked(features, rows)


def means_of(features: Features) -> Float[Tensor, "n d"] | None:
    """One vector of each prompt: the prompt's own, or the mean of its states; None for texts."""
    return FORMS[type(features)].means(features)


def on_host(features: Features) -> Features:
    """The same on the CPU, where routers are trained."""
    return FORMS[type(features)].on_host(features)


def vectors_of(features: Features) -> Float[Tensor, "m d"]:
    """All vectors of all prompts, from which a router learns how to standardise; RecipeError for texts."""
    return FORMS[type(features)].vectors(features)
