"""Joining parts: what a mixture is made of, and the one dense model that its experts merge into."""

from moesaic.compose.merge import average
from moesaic.compose.parameters import asleep, count_parameters

__all__ = ["asleep", "average", "count_parameters"]
