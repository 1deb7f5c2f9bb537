"""Gates under which one contender is trained or measured by itself.

Knows nothing about routers.
"""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from moesaic.routing import Gates

Weights = Float[Tensor, "n e"]
"""Decisions: the weights of e experts for each of n rows."""
GatesFor = Callable[[int], Gates | None]
"""The gates of a number of rows."""


def plain(rows: int) -> None:
    """No gates: for a decoder without experts."""
    return


def alone(rows: int, device: torch.device | None = None) -> Gates:
    """All rows on the only expert."""
    return Gates.one(0, rows, 1, torch.zeros(1, device=device))


def halves(rows: int, device: torch.device | None = None) -> Gates:
    """All rows on the only expert, with as much weight as the base."""
    return Gates.of(torch.full((rows, 1), 0.5, device=device))


def beside(module: nn.Module, gates: Callable[..., Gates]) -> Callable[[int], Gates]:
    """Such gates on the device of a module."""
    return partial(gates, device=next(module.parameters()).device)
