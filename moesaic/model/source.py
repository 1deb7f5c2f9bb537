"""The source of a mixture's experts: the calls that load experts into memory before they compute.

Knows nothing about files, devices or the size of memory.
"""

import sys
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class Traffic:
    """Fetches of experts so far, their bytes, cache hits, and seconds of waiting."""

    fetches: int = 0
    bytes: int = 0
    hits: int = 0
    seconds: float = 0.0


@runtime_checkable
class ExpertSource(Protocol):
    """Holds experts, by their index in the router's order, in memory while they compute."""

    @property
    def traffic(self) -> Traffic: ...

    @property
    def sorts(self) -> bool:
        """Whether rows of the same experts should be answered together, to their end, before other rows."""

    def using(self, experts: Collection[int]) -> AbstractContextManager[None]:
        """Fetch these experts if necessary, and keep them in memory inside the block."""

    def expect(self, experts: Collection[int]) -> None:
        """Announce the experts of the next block: fetching may begin if there is room."""

    def missing(self, experts: Collection[int]) -> int:
        """Bytes to fetch before these experts can compute."""

    def rows(self, tokens: int) -> int:
        """The number of rows of so many tokens, prompt and answer together, that fit into memory at once."""

    def turn(self, rows: int, tokens: int) -> AbstractContextManager[None]:
        """Reserve the memory of one answer of so many rows and tokens; a second answer waits."""

    def serve(self, cache: int, rows: int, tokens: int) -> None:
        """Reserve memory for good, for so many rows in flight, `cache` bytes of keys and values, and passes of so many
        tokens; MemoryLimitError where experts that must stay do not fit beside them."""


class Held:
    """A source whose experts are always in memory: fetches nothing and never waits."""

    sorts = False
    traffic = Traffic()

    def using(self, experts: Collection[int]) -> AbstractContextManager[None]:
        return nullcontext()

    def expect(self, experts: Collection[int]) -> None: ...

    def missing(self, experts: Collection[int]) -> int:
        return 0

    def rows(self, tokens: int) -> int:
        return sys.maxsize

    def turn(self, rows: int, tokens: int) -> AbstractContextManager[None]:
        return nullcontext()

    def serve(self, cache: int, rows: int, tokens: int) -> None: ...


HELD = Held()
