"""RMSNorm. Knows nothing about what it normalises."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class RMSNorm(nn.Module):
    """x / rms(x) * weight. Root Mean Square Layer Normalization (arXiv 1910.07467), equation 4."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
