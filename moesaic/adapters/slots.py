"""Slots of a model, found by the class of their filling.

Knows nothing about what the class computes.
"""

from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def slots_of(module: nn.Module, filling: type[M]) -> dict[str, M]:
    """The submodules of this class, by path, in the module's order."""
    return {path: part for path, part in module.named_modules() if isinstance(part, filling)}
