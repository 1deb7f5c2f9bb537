"""The slots of a model that are filled by one class, by path.

Knows nothing about what the class computes.
"""

from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def slots_of(module: nn.Module, filling: type[M]) -> dict[str, M]:
    """The parts of a module that are of this class, by path, in the module's order."""
    return {path: part for path, part in module.named_modules() if isinstance(part, filling)}
