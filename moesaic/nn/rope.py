"""Where tokens stand: rotary positions, and the Span of one pass over a chunk of tokens.

Knows nothing about layers: one Span serves all of a kind. RoFormer (arXiv 2104.09864), equation 34, in the rotate-half
layout of Hugging Face checkpoints.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from moesaic.config import RopeScaling

# Positions that are tabled from the start; a model of a longer context tables the others when they are first asked for.
FIRST = 4096


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

    def __init__(self, head_dim: int, context: int, theta: float, scaling: RopeScaling | None = None):
        super().__init__()
        self.head_dim, self.context, self.theta, self.scaling = head_dim, context, theta, scaling
        self.register_buffer("cos", torch.empty(0, head_dim), persistent=False)
        self.register_buffer("sin", torch.empty(0, head_dim), persistent=False)
        if not self.cos.is_meta:
            self.reserve(FIRST, self.cos)

    def reserve(self, positions: int, like: Tensor) -> None:
        """Have a table for so many positions, but never beyond the context, in the type and on the device of `like`."""
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
    """Frequencies, in radians a token, as `scaling` says."""
    return SLOWED[scaling.kind](frequencies, scaling)


def all_slowed(frequencies: Float[Tensor, " f"], scaling: RopeScaling) -> Float[Tensor, " f"]:
    """All frequencies slowed alike."""
    return frequencies / scaling.factor


def low_slowed(frequencies: Float[Tensor, " f"], scaling: RopeScaling) -> Float[Tensor, " f"]:
    """The low frequencies slowed, the high ones kept, those between blended."""
    turns = scaling.original_context * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / scaling.factor)


SLOWED = {"linear": all_slowed, "llama3": low_slowed}
"""Kind of RopeScaling -> what it does to frequencies."""


def beside_padding(real: Bool[Tensor, "b t"], window: int) -> tuple[Int[Tensor, "b t"], Bool[Tensor, "b 1 t t"]]:
    """Positions that count only real tokens, and what each token may see: real ones up to itself, at most `window`.

    Padding sees itself, so that nothing is divided by zero; nobody reads what comes of it.
    """
    positions = (real.cumsum(1) - 1).clamp(min=0)
    t = torch.arange(real.shape[1], device=real.device)
    seen = (t <= t[:, None]) & real[:, None]
    if window:
        seen = seen & (positions[:, None] > positions[:, :, None] - window)
    return positions, (seen | (t == t[:, None]))[:, None]
