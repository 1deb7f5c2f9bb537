"""Where tokens stand: rotary positions, and the Span of one pass over a chunk of tokens.

Knows nothing about layers: one Span serves all of them. RoFormer (arXiv 2104.09864), equation 34, in the rotate-half
layout of Hugging Face checkpoints.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


@dataclass(frozen=True)
class Span:
    """The positions of a chunk: its rotations, and what each token may see (None: causal within the chunk)."""

    cos: Float[Tensor, "#b 1 t hd"]
    sin: Float[Tensor, "#b 1 t hd"]
    positions: Int[Tensor, "#b t"]
    mask: Bool[Tensor, "b 1 t s"] | None

    def rotate(self, x: Float[Tensor, "b h t hd"]) -> Float[Tensor, "b h t hd"]:
        left, right = x.chunk(2, -1)
        return x * self.cos + torch.cat((-right, left), -1) * self.sin


class Rope(nn.Module):
    """The table of rotations for positions 0 .. context - 1."""

    cos: Tensor
    sin: Tensor

    def __init__(self, head_dim: int, context: int, theta: float):
        super().__init__()
        frequencies = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
        angles = torch.outer(torch.arange(context, dtype=torch.float64), frequencies).repeat(1, 2)
        self.register_buffer("cos", angles.cos().to(torch.get_default_dtype()), persistent=False)
        self.register_buffer("sin", angles.sin().to(torch.get_default_dtype()), persistent=False)

    def span(self, positions: Int[Tensor, "b t"], mask: Bool[Tensor, "b 1 t s"] | None) -> Span:
        return Span(self.cos[positions][:, None], self.sin[positions][:, None], positions, mask)
