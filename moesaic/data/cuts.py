"""Counts the tokens that rows lost because they were too long.

Knows nothing about how rows are cut.
"""

from collections.abc import Collection
from typing import Protocol, runtime_checkable


@runtime_checkable
class Cuttable(Protocol):
    """A row as ids; `lost`: the number of ids that were cut off."""

    @property
    def ids(self) -> list[int]: ...
    @property
    def lost(self) -> int: ...


def truncated(rows: Collection[Cuttable]) -> int:
    """Count the rows that were cut."""
    return sum(row.lost > 0 for row in rows)


def cut_of(rows: Collection[Cuttable]) -> dict[str, float]:
    """The share of the tokens of all rows that was cut off, as `cut`; empty where no row was cut."""
    lost = sum(row.lost for row in rows)
    return {"cut": lost / (lost + sum(len(row.ids) for row in rows))} if lost else {}


def told(split: str, rows: Collection[Cuttable], length: int) -> str | None:
    """A sentence about rows that were cut to `length` tokens; None where no row was cut."""
    if not (share := cut_of(rows)):
        return None
    counts = f"{truncated(rows)} of {len(rows)} {split} rows are cut to {length} tokens (train.length)"
    return f"{counts}: {share['cut']:.1%} of all tokens are not read"
