"""RMSNorm in two forms. Knows nothing about the layers around it."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from moesaic.config import DecoderConfig


class RMSNorm(nn.Module):
    """x / rms(x) * weight. Root Mean Square Layer Normalization (arXiv 1910.07467), equation 4."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class OffsetRMSNorm(nn.Module):
    """x / rms(x) * (weight + offset), computed in float32 at least and rounded once at the end (arXiv 2403.08295)."""

    def __init__(self, size: int, eps: float, offset: float):
        super().__init__()
        self.eps, self.offset = eps, offset
        self.weight = nn.Parameter(torch.full((size,), 1.0 - offset))

    def forward(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        exact = torch.promote_types(x.dtype, torch.float32)
        weight = self.weight.to(exact) + self.offset
        return F.rms_norm(x.to(exact), weight.shape, weight, self.eps).to(x.dtype)


def norm(config: DecoderConfig, size: int) -> RMSNorm | OffsetRMSNorm:
    if config.norm_offset:
        return OffsetRMSNorm(size, config.norm_eps, config.norm_offset)
    return RMSNorm(size, config.norm_eps)
