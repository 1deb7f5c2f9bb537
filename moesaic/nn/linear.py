"""The linear slot, `linear(x, gates) -> y`, and its plain filling.

Knows nothing about adapters, which fill the same slot by wrapping `Linear`.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from moesaic.routing import Gates


class Linear(nn.Module):
    """y = W x, or W x + b, for all rows. It ignores `gates`, which belong to the slot's signature."""

    def __init__(self, in_features: int, out_features: int, bias: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    @property
    def in_features(self) -> int:
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    def forward(self, x: Float[Tensor, "n t i"], gates: Gates | None) -> Float[Tensor, "n t o"]:
        return F.linear(x, self.weight, self.bias)
