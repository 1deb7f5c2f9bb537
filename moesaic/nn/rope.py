"""Rotary positions, and the Span of one pass over a chunk of tokens.

Knows nothing about layers: all layers of one kind share a Span. RoFormer (arXiv 2104.09864), equation 34, in the
rotate-half layout of Hugging Face checkpoints.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from moesaic.config import RopeScaling

FIRST = 4096  # positions in the table from the start; a longer table is computed when it is first needed


Mask = Int[Tensor, "b t"] | Bool[Tensor, "b t"]
"""The number of each token's text within its row, from 1 on; 0 at padding."""


@dataclass(frozen=True)
class Span:
    """The positions of a chunk: its rotations, and the mask of attention (None: causal within the chunk)."""

    cos: Float[Tensor, "#b 1 t hd"]
    sin: Float[Tensor, "#b 1 t hd"]
    positions: Int[Tensor, "#b t"]
    mask: Bool[Tensor, "#b 1 t s"] | None

    def rotate(self, x: Float[Tensor, "b h t hd"]) -> Float[Tensor, "b h t hd"]:
        left, right = x.chunk(2, -1)
        return x * self.cos + torch.cat((-right, left), -1) * self.sin


class Rope(nn.Module):
    """Table of rotations for positions 0 .. context - 1."""

    cos: Tensor
    sin: Tensor

    def __init__(self, head_dim: int, context: int, theta: float, scaling: RopeScaling | None = None):
        super().__init__()
        self.head_dim, self.context, self.theta, self.scaling = head_dim, context, theta, scaling
        self.register_buffer("cos", torch.empty(0, head_dim), persistent=False)
        self.register_buffer("sin", torch.empty(0, head_dim), persistent=False)
        if not self.cos.is_meta:
            self.reserve(FIRST, self.cos)

    def reserve(self, positions: int, like: Tensor) -> None:
        """Extend the table to this many positions, at most the context, in the type and on the device of `like`."""
        positions = min(positions, self.context)
        if len(self.cos) >= positions and self.cos.device == like.device:
            return
        frequencies = self.theta ** -(torch.arange(0, self.head_dim, 2, dtype=torch.float64) / self.head_dim)
        if self.scaling is not None:
            frequencies = slowed(frequencies, self.scaling)
        angles = torch.outer(torch.arange(positions, dtype=torch.float64), frequencies).repeat(1, 2)
        self.cos, self.sin = angles.cos().to(like), angles.sin().to(like)

    def span(self, positions: Int[Tensor, "b t"], mask: Bool[Tensor, "b 1 t s"] | None) -> Span:
        return Span(self.cos[positions][:, None], self.sin[positions][:, None], positions, mask)


def slowed(frequencies: Float[Tensor, " f"], scaling: RopeScaling) -> Float[Tensor, " f"]:
    """Scale frequencies, in radians a token: `linear` divides all, `llama3` the low ones, and blends in between."""
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    turns = scaling.original_context * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / scaling.factor)


def apart(documents: Mask, window: int) -> tuple[Int[Tensor, "b t"], Bool[Tensor, "b 1 t t"]]:
    """Positions within each text of a row, and the mask: a token sees its own text up to itself, at most `window`.

    `documents`: the number of each token's text within the row; 0 at padding, which sees itself alone, so that no
    softmax divides by zero.
    """
    t = torch.arange(documents.shape[1], device=documents.device)
    seen = (t <= t[:, None]) & (documents[:, None] == documents[:, :, None]) & (documents != 0)[:, None]
    positions = (seen.sum(2) - 1).clamp(min=0)
    if window:
        seen = seen & (positions[:, None] > positions[:, :, None] - window)
    return positions, (seen | (t == t[:, None]))[:, None]
