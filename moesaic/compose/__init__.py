"""Joining parts: what a mixture is made of, and the one dense model that its experts merge into."""

from moesaic.compose.merge import average, average_blocks, average_models
from moesaic.compose.parameters import asleep, count_blocks, count_models, count_parameters

__all__ = [
    "asleep",
    "average",
    "average_blocks",
    "average_models",
    "count_blocks",
    "count_models",
    "count_parameters",
]
