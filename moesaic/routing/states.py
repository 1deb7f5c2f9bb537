"""The states of prompts' tokens, not pooled: what a router reads that pools them itself.

Knows nothing about models. There is no padding in here, so nothing that pools can count any.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class States:
    """The states of n prompts' m tokens, one prompt's behind another's, and how many each prompt has."""

    values: Float[Tensor, "m d"]
    lengths: Int[Tensor, " n"]

    @staticmethod
    def of(x: Float[Tensor, "n t d"], lengths: Int[Tensor, " n"]) -> "States":
        """Those of a right-padded batch."""
        real = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        return States(x[real], lengths)

    @staticmethod
    def cat(parts: list["States"]) -> "States":
        return States(torch.cat([part.values for part in parts]), torch.cat([part.lengths for part in parts]))

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, rows: slice | Int[Tensor, " g"] | Bool[Tensor, " n"]) -> "States":
        """The prompts chosen, in the order given."""
        lengths = self.lengths[rows]
        starts = (self.lengths.cumsum(0) - self.lengths)[rows]
        within = torch.arange(int(lengths.sum()), device=lengths.device) - (
            lengths.cumsum(0) - lengths
        ).repeat_interleave(lengths)
        return States(self.values[starts.repeat_interleave(lengths) + within], lengths)

    @property
    def owners(self) -> Int[Tensor, " m"]:
        """The prompt that each token belongs to."""
        return torch.arange(len(self), device=self.lengths.device).repeat_interleave(self.lengths)

    def mean(self) -> Float[Tensor, "n d"]:
        """The mean over each prompt's own tokens."""
        return self.added(self.values) / self.lengths[:, None]

    def added(self, values: Float[Tensor, "m *rest"]) -> Float[Tensor, "n *rest"]:
        """The sum over each prompt's tokens of what they have."""
        return values.new_zeros(len(self), *values.shape[1:]).index_add(0, self.owners, values)

    def shares(self, scores: Float[Tensor, "m h"]) -> Float[Tensor, "m h"]:
        """The softmax of scores over the tokens of each prompt."""
        owners = self.owners
        highest = scores.new_full((len(self), scores.shape[1]), float("-inf"))
        highest = highest.scatter_reduce(0, owners[:, None].expand_as(scores), scores.detach(), "amax")
        sizes = (scores - highest[owners]).exp()
        return sizes / self.added(sizes)[owners]
