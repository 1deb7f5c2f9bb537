"""Loads experts when they are needed and unloads them when others need their memory, within a budget of bytes.

Knows nothing about what an expert is, nor about its callers.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from moesaic.errors import MemoryLimitError, RecipeError
from moesaic.model.source import Traffic
from moesaic.residency.transfer import Carrier

HINT = "give more memory, or ask for fewer tokens"


@runtime_checkable
class Fetchable(Protocol):
    """An expert on disk with its modules in a model.

    `size`: bytes in memory. `tensors` reads and checks them, `fill` loads them into the model, `empty` unloads them,
    `let_go` drops all views of the files, `announce` asks the system to read the files ahead.
    """

    @property
    def size(self) -> int: ...
    def tensors(self) -> dict[str, Tensor]: ...
    def fill(self, tensors: Mapping[str, Tensor]) -> None: ...
    def empty(self) -> None: ...
    def let_go(self) -> None: ...
    def announce(self) -> None: ...


@dataclass(frozen=True)
class Budget:
    """Memory in bytes, beside what a mixture always takes.

    `room`: for experts and working memory together, of which `kept` is reserved as working memory. `least`: the size of
    the largest experts of one row, which must always fit. `working(rows, tokens)`: the memory that such rows take while
    they are answered. `device`: the device of this memory, None for the host; `near`: then, the host's memory for
    experts on their way.
    """

    room: int
    kept: int
    least: int
    working: Callable[[int, int], int]
    device: torch.device | None = None
    near: int = 0


class Whole:
    """An expert that is always in memory with its mixture."""

    size = 0

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def fill(self, tensors: Mapping[str, Tensor]) -> None: ...
    def empty(self) -> None: ...
    def let_go(self) -> None: ...
    def announce(self) -> None: ...


class FetchedExperts:
    """An ExpertSource that loads whole experts from disk, and unloads the least recently used first.

    `traffic` counts an expert once for each time it is in use. Several threads may use it; answers take turns, as they
    share the working memory. `settled`: the experts of a row do not change while it is answered.
    """

    def __init__(self, experts: Sequence[Fetchable], budget: Budget, settled: bool):
        self.experts, self.budget, self.settled = experts, budget, settled
        self.sizes = [expert.size for expert in experts]
        self.capacity = self.most = budget.room - budget.kept
        self.traffic = Traffic()
        self.here: dict[int, None] = {}  # experts in memory, the least recently used first
        self.coming: set[int] = set()  # experts that are being loaded
        self.ahead: set[int] = set()  # experts that were loaded ahead and not used yet
        self.pins: Counter[int] = Counter()
        self.changed = threading.Condition()
        self.answering, self.owner = threading.Lock(), 0
        self.carrier = Carrier(budget.device, budget.near) if budget.device else None

    @property
    def sorts(self) -> bool:
        return self.settled and sum(self.sizes) > self.capacity

    def rows(self, tokens: int) -> int:
        """The number of rows that fit in the working memory, at least one; MemoryLimitError where one does not fit."""
        self.left_beside(1, tokens)
        rows = 1
        while self.budget.working(2 * rows, tokens) <= self.budget.kept:
            rows *= 2
        return rows

    def left_beside(self, rows: int, tokens: int) -> int:
        """Bytes left for experts while such rows are answered; MemoryLimitError where they are too few."""
        needed = max(self.budget.kept, self.budget.working(rows, tokens))
        if (left := self.budget.room - needed) < self.budget.least:
            what = f"{rows} rows" if rows > 1 else "a row"
            got = f"{needed:,} to answer {what} of {tokens:,} tokens, and {self.budget.least:,} for experts"
            expected = f"at most {self.budget.room:,} bytes together"
            raise MemoryLimitError("not enough memory for the answer", expected=expected, got=got, hint=HINT)
        return left

    @contextmanager
    def turn(self, rows: int, tokens: int) -> Iterator[None]:
        """Wait until every other answer is finished; see `ExpertSource`."""
        if self.owner == threading.get_ident():
            hint = "read the stream to its end, or close it"
            raise RecipeError("another answer of this mixture is not finished", field="stream", hint=hint)
        left = self.left_beside(rows, tokens)
        with self.answering:
            self.owner = threading.get_ident()
            try:
                with self.changed:
                    self.changed.wait_for(lambda: not self.coming and self.weight(self.pins) <= left)
                    self.capacity = left
                    self.make_room(())
                yield
            finally:
                self.capacity, self.owner = self.most, 0

    def serve(self, cache: int, rows: int, tokens: int) -> None:
        """Refuse where experts do not fit beside so many rows; see `ExpertSource`. Rows differ in their experts, so all
        of these must fit, unless they change while a row is answered."""
        needed = cache + max(self.budget.working(rows, 1), self.budget.working(1, tokens))
        experts = sum(self.sizes) if self.settled else self.budget.least
        if needed + experts > self.budget.room:
            got = f"{needed:,} to answer {rows} rows, and {experts:,} for experts"
            expected, hint = f"at most {self.budget.room:,} bytes together", "give more memory, or a smaller cache"
            raise MemoryLimitError("not enough memory to serve", expected=expected, got=got, hint=hint)
        self.capacity = self.most = self.budget.room - needed

    @contextmanager
    def using(self, experts: Collection[int]) -> Iterator[None]:
        """Wait for memory that others use; see `ExpertSource`."""
        asked = Counter({expert: 1 for expert in experts if self.sizes[expert]})
        needed, limit = self.weight(asked), self.capacity if self.owner == threading.get_ident() else self.most
        if needed > limit:
            got = f"{needed:,} for {len(asked)} experts"
            what, hint = "these experts do not fit at once", "ask for fewer rows at once"
            raise MemoryLimitError(what, expected=f"at most {limit:,} bytes", got=got, hint=hint)
        with self.changed:
            self.changed.wait_for(lambda: self.weight(self.pins + asked) <= self.capacity)
            first = [expert for expert in asked if not self.pins[expert]]
            self.pins += asked
        try:
            for expert in sorted(asked, key=lambda expert: expert not in self.here):
                self.have(expert, expert in first)
            yield
        finally:
            with self.changed:
                self.pins -= asked
                self.changed.notify_all()

    def expect(self, experts: Collection[int]) -> None:
        """Load the experts that fit beside those in use, in threads; announce the files of the others."""
        with self.changed:
            for expert in experts:
                if not self.sizes[expert] or expert in self.here or expert in self.coming:
                    continue
                if self.make_room((expert,)):
                    self.coming.add(expert)
                    self.ahead.add(expert)
                    threading.Thread(target=self.ahead_of_time, args=(expert,)).start()
                else:
                    self.experts[expert].announce()

    def missing(self, experts: Collection[int]) -> int:
        return self.weight(expert for expert in experts if expert not in self.here and expert not in self.coming)

    def weight(self, experts: Iterable[int]) -> int:
        return sum(self.sizes[expert] for expert in experts)

    def have(self, expert: int, counts: bool) -> None:
        """Load an expert that is not in memory, once there is room; the caller must have pinned it."""
        began, mine = time.perf_counter(), False
        try:
            with self.changed:
                self.changed.wait_for(
                    lambda: expert in self.here or (expert not in self.coming and self.make_room((expert,)))
                )
                if expert in self.here:
                    self.here[expert] = self.here.pop(expert)
                    found = counts and expert not in self.ahead
                    self.ahead.discard(expert)
                else:
                    mine, found = True, False
                    self.coming.add(expert)
            if mine:
                self.bring(expert)
        finally:
            if mine and expert not in self.here:
                self.gone(expert)
        with self.changed:
            waited = self.traffic.seconds + time.perf_counter() - began
            self.traffic = replace(self.traffic, hits=self.traffic.hits + found, seconds=waited)

    def ahead_of_time(self, expert: int) -> None:
        """Load an expert in a thread of `expect`. After an error, `have` tries again and reports it."""
        try:
            self.bring(expert)
        except Exception:
            self.gone(expert)

    def bring(self, expert: int) -> None:
        """Read an expert and load it into the model."""
        own = self.experts[expert]
        with torch.inference_mode(False), torch.no_grad():  # the parameters serve callers of any mode
            own.fill(own.tensors() if self.carrier is None else self.carrier.carried(expert, own.tensors, own.let_go))
        with self.changed:
            self.coming.discard(expert)
            self.here[expert] = None
            size, so_far = self.sizes[expert], self.traffic
            self.traffic = replace(so_far, fetches=so_far.fetches + 1, bytes=so_far.bytes + size)
            self.changed.notify_all()

    def gone(self, expert: int) -> None:
        """Unload an expert."""
        with self.changed:
            if self.carrier is not None:
                self.carrier.settle()
            self.experts[expert].empty()
            self.experts[expert].let_go()
            self.here.pop(expert, None)
            self.coming.discard(expert)
            self.ahead.discard(expert)
            self.changed.notify_all()

    def make_room(self, wanted: Collection[int]) -> bool:
        """Unload unused experts until those wanted fit; False, and nothing is unloaded, where they cannot."""
        used = {*self.pins, *self.coming, *wanted}
        if self.weight(used) > self.capacity:
            return False
        for oldest in [expert for expert in self.here if expert not in used]:
            if self.weight({*used, *self.here}) > self.capacity:
                self.gone(oldest)
        return True
