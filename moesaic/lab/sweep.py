"""Sweeps of learning rates as pure functions: which rates to try next, and which one is best.

All sweeps of a study have the same number of rates, so that no arm is tuned better than another. Knows nothing about
how a rate is tried.
"""

from collections.abc import Mapping
from typing import TypeVar

from moesaic.lab.study import FACTOR

K = TypeVar("K")
Tried = Mapping[float, float]
"""Rate -> the validation loss it gave; infinite where the training diverged."""


def best(tried: Tried) -> float:
    """The rate with the smallest loss; of equal ones the smallest rate."""
    return min(sorted(tried), key=lambda rate: tried[rate])


def interior(tried: Tried) -> bool:
    """Whether a smaller and a larger rate than the best were tried, so that the best is not at an end."""
    return min(tried) < best(tried) < max(tried)


def beyond(tried: Tried) -> float:
    """The next rate outside: beyond the end with the smaller loss."""
    low, high = min(tried), max(tried)
    return low / FACTOR if tried[low] <= tried[high] else high * FACTOR


def further(sweeps: Mapping[K, Tried], most: int) -> dict[K, float]:
    """The next rate of every sweep; none once the best of each is interior or each has tried `most` rates."""
    if all(interior(tried) or len(tried) >= most for tried in sweeps.values()):
        return {}
    return {key: beyond(tried) for key, tried in sweeps.items()}
