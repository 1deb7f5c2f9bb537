"""Where experts are while they are not needed: what a mixture, and whoever asks it, says to who brings them.

Knows nothing about files, devices or how much memory there is.
"""

import sys
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class Traffic:
    """What was fetched so far: how often, bytes, how often an expert was there already, and seconds of waiting."""

    fetches: int = 0
    bytes: int = 0
    hits: int = 0
    seconds: float = 0.0


@runtime_checkable
class ExpertSource(Protocol):
    """Has experts in memory while they compute. An expert is known by its place in the router's order."""

    @property
    def traffic(self) -> Traffic:
        """The fetches so far."""

    @property
    def sorts(self) -> bool:
        """Whether rows of the same experts are to be answered together, and to their end, before the next are."""

    def using(self, experts: Collection[int]) -> AbstractContextManager[None]:
        """All of these are in memory inside the block; those that are not are fetched first."""

    def expect(self, experts: Collection[int]) -> None:
        """These are needed next: fetching them may begin, as far as there is room beside those in use."""

    def missing(self, experts: Collection[int]) -> int:
        """Bytes that would have to be fetched before these compute."""

    def rows(self, tokens: int) -> int:
        """How many rows of so many tokens, prompt and answer together, there is memory for at once."""

    def turn(self, rows: int, tokens: int) -> AbstractContextManager[None]:
        """One answer, of so many rows and tokens: the memory that it works in is kept free; who comes second waits."""


class Held:
    """All experts are in memory, always: nothing is fetched, nobody waits."""

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


HELD = Held()
