"""Counts the tokens that rows lost because they were too long.

Knows nothing about how rows are cut.
"""

from abc import abstractmethod
from collections.abc import Collection
from functools import singledispatch
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


@runtime_checkable
class Sized(Protocol):
    """A row as ids."""

    @property
    def ids(self) -> list[int]: ...


@runtime_checkable
class Cuttable(Sized, Protocol):
    """A row as ids; `lost`: the number of ids that were cut off."""

    @property
    def lost(self) -> int: ...


class Counted(Collection[Any]):
    """Rows whose tokens are counted already, by row."""

    @property
    @abstractmethod
    def lengths(self) -> NDArray[np.int64]:
        """The number of tokens of every row."""

    @property
    @abstractmethod
    def lost(self) -> NDArray[np.int64]:
        """The number of tokens that were cut off every row."""


@singledispatch
def lengths_of(rows: Collection[Sized]) -> NDArray[np.int64]:
    """The number of ids of every row."""
    return np.array([len(row.ids) for row in rows], np.int64)


@singledispatch
def lost_of(rows: Collection[Cuttable]) -> NDArray[np.int64]:
    """The number of ids that were cut off every row."""
    return np.array([row.lost for row in rows], np.int64)


@lengths_of.register
def _(rows: Counted) -> NDArray[np.int64]:
    return rows.lengths


@lost_of.register
def _(rows: Counted) -> NDArray[np.int64]:
    return rows.lost


def truncated(rows: Collection[Cuttable]) -> int:
    """Count the rows that were cut."""
    return int(np.count_nonzero(lost_of(rows)))


def cut_of(rows: Collection[Cuttable]) -> dict[str, float]:
    """The share of the tokens of all rows that was cut off, as `cut`; empty where no row was cut."""
    lost = int(lost_of(rows).sum())
    return {"cut": lost / (lost + int(lengths_of(rows).sum()))} if lost else {}


def told(split: str, rows: Collection[Cuttable], length: int) -> str | None:
    """A sentence about rows that were cut to `length` tokens; None where no row was cut."""
    if not (share := cut_of(rows)):
        return None
    counts = f"{truncated(rows)} of {len(rows)} {split} rows are cut to {length} tokens (train.length)"
    return f"{counts}: {share['cut']:.1%} of all tokens are not read"
