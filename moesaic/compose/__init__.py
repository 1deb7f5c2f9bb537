"""Joining parts: what a mixture is made of, and the one dense model that its experts merge into."""

from moesaic.compose.merge import average
from moesaic.compose.parameters import count_parameters

__all__ = ["average", "count_parameters"]
