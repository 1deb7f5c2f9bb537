"""Keys and values of the tokens that were read, per layer and row; rows may have different lengths.

`Slots` is memory that is allocated once and never moved. A `Cache` is a value: the slots of a batch's rows and the
number of tokens in each. Rows join and leave by their slots, and no key or value is copied.
Knows nothing about models: attention writes here, the caller of a pass advances the lengths.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from moesaic.config import DecoderConfig
from moesaic.errors import MemoryLimitError
from moesaic.ops.host import to_device


class Spare:
    """Numbers of free slots; the lowest are taken first, so that rows get neighbouring slots."""

    def __init__(self, numbers: Iterable[int] = ()):
        self.numbers = sorted(numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    def take(self, count: int) -> tuple[int, ...]:
        """Take this many free slots; MemoryLimitError if there are fewer."""
        if count > len(self):
            expected, hint = f"at most {len(self)} rows", "admit fewer rows, or wait until some finish"
            raise MemoryLimitError("there are too few free slots", expected=expected, got=count, hint=hint)
        taken, self.numbers = tuple(self.numbers[:count]), self.numbers[count:]
        return taken

    def add(self, numbers: Iterable[int]) -> None:
        self.numbers = sorted([*self.numbers, *numbers])


class SlotBlock(NamedTuple):
    """Memory of slots that were allocated together: keys and values of each layer, (slots, h, capacity, hd)."""

    first: int
    keys: list[Tensor]
    values: list[Tensor]

    @property
    def end(self) -> int:
        return self.first + len(self.keys[0])


class SlotRun(NamedTuple):
    """Rows `start` to `stop` of a batch, whose slots are neighbours in one block; the first slot is at `offset`."""

    start: int
    stop: int
    block: SlotBlock
    offset: int

    @property
    def rows(self) -> slice:
        return slice(self.start, self.stop)

    @property
    def capacity(self) -> int:
        return self.block.keys[0].shape[2]


class Slots:
    """Memory for keys and values: slots for one row of at most `capacity` tokens each."""

    def __init__(self, config: DecoderConfig, rows: int, capacity: int, like: Tensor):
        self.config, self.capacity, self.dtype, self.device = config, capacity, like.dtype, like.device
        self.blocks: list[SlotBlock] = []
        self.spare = Spare()
        if rows:
            self.grow(rows)

    def grow(self, rows: int) -> None:
        """Allocate this many more slots; existing slots are not moved."""
        first = self.blocks[-1].end if self.blocks else 0
        shape, layers = (rows, self.config.num_kv_heads, self.capacity, self.config.head_dim), self.config.num_layers

        def zeros() -> list[Tensor]:
            return [torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in range(layers)]

        self.blocks.append(SlotBlock(first, zeros(), zeros()))
        self.spare.add(range(first, first + rows))

    def free(self, slots: Sequence[int]) -> None:
        self.spare.add(slots)

    def block(self, slot: int) -> SlotBlock:
        return next(block for block in self.blocks if block.first <= slot < block.end)

    def copy(self, source: int, target: int, tokens: int) -> None:
        one, other = self.block(source), self.block(target)
        for own, new in zip((*one.keys, *one.values), (*other.keys, *other.values), strict=True):
            new[target - other.first, :, :tokens] = own[source - one.first, :, :tokens]

    def runs(self, slots: Sequence[int]) -> tuple[SlotRun, ...]:
        """Group rows whose slots are neighbours in one block."""
        found: list[SlotRun] = []
        for row, slot in enumerate(slots):
            if found and slot == slots[row - 1] + 1 and slot < found[-1].block.end:
                found[-1] = found[-1]._replace(stop=row + 1)
            else:
                block = self.block(slot)
                found.append(SlotRun(row, row + 1, block, slot - block.first))
        return tuple(found)


@runtime_checkable
class Memory(Protocol):
    """Memory of slots for keys and values: the calls that a Cache makes."""

    device: torch.device

    def runs(self, slots: Sequence[int]) -> tuple[SlotRun, ...]:
        """Group rows into as few runs as their order allows; attention reads each run without copying."""

    def copy(self, source: int, target: int, tokens: int) -> None: ...


@dataclass(frozen=True)
class Cache:
    """The slots of b rows. Row i holds `counts[i]` tokens in `slots[i]`; later positions are masked.

    Chunks are right-padded: a pass writes all its tokens after each row's length, `advance` counts the real ones, and
    the next pass overwrites the padding. The host knows the counts, so that no pass waits for the device.
    """

    memory: Memory
    slots: tuple[int, ...]
    counts: tuple[int, ...]
    lengths: Int[Tensor, " b"]  # the counts, on the device
    runs: tuple[SlotRun, ...]
    ends: Int[Tensor, " b"]  # the last position of each slot

    @staticmethod
    def of(memory: Memory, slots: Sequence[int], counts: Sequence[int] | None = None) -> "Cache":
        """The rows in these slots, with `counts` tokens each (default: 0)."""
        held, found = tuple(counts or (0,) * len(slots)), memory.runs(slots)
        ends = [run.capacity - 1 for run in found for _ in range(run.start, run.stop)]
        lengths, last = to_device([held, ends], memory.device)
        return Cache(memory, tuple(slots), held, lengths, found, last)

    @staticmethod
    def empty(config: DecoderConfig, rows: int, capacity: int, like: Tensor) -> "Cache":
        memory = Slots(config, rows, capacity, like)
        return Cache.of(memory, memory.spare.take(rows))

    @property
    def capacity(self) -> int:
        """Tokens of the largest slot."""
        return max(run.capacity for run in self.runs)

    @property
    def fresh(self) -> bool:
        """Whether no row holds a token, so that a chunk sees nothing but itself."""
        return not any(self.counts)

    def reach(self, t: int) -> int:
        """The positions of a slot that rows see after a chunk of t tokens, at most."""
        return t if self.fresh else min(max(self.counts) + t, self.capacity)

    def positions(self, t: int) -> Int[Tensor, "b t"]:
        """The positions of a chunk; in longer chunks, padding beyond a slot falls on the slot's last position."""
        at = self.lengths[:, None] + torch.arange(t, device=self.lengths.device)
        return at if t == 1 else at.minimum(self.ends[:, None])

    def mask(self, positions: Int[Tensor, "b t"], window: int = 0) -> Bool[Tensor, "b 1 t s"] | None:
        """The tokens of its slot that each token of a chunk sees; None where all see what precedes them in one chunk,
        or one token of each row sees the whole `reach`.
        """
        t = positions.shape[1]
        reach = self.reach(t)
        alike = self.fresh or (t == 1 and len({*self.counts}) == 1)
        return None if alike and not 0 < window < reach else self.visible(positions, window, reach)

    def visible(
        self, positions: Int[Tensor, "b t"], window: int = 0, reach: int | None = None
    ) -> Bool[Tensor, "b 1 t s"]:
        """The tokens of its slot that each token sees: up to its own position, or the last `window` of these.

        `reach`: the positions to judge (default: the capacity).
        """
        held = torch.arange(self.capacity if reach is None else reach, device=positions.device)
        own = positions[:, None, :, None]
        return (held <= own) & (held > own - window) if window else held <= own

    def write(
        self,
        layer: int,
        run: SlotRun,
        k: Float[Tensor, "g h t hd"],
        v: Float[Tensor, "g h t hd"],
        positions: Int[Tensor, "g t"],
    ) -> tuple[Float[Tensor, "g h s hd"], Float[Tensor, "g h s hd"]]:
        """Write the chunk of a run's rows and return views of all keys and values of these rows."""
        at = slice(run.offset, run.offset + run.stop - run.start)
        keys, values = run.block.keys[layer][at], run.block.values[layer][at]
        index = positions[:, None, :, None].expand(k.shape)
        return keys.scatter_(2, index, k), values.scatter_(2, index, v)

    def take(self, other: "Cache", tokens: int) -> None:
        """Copy the first tokens of another cache's only row, in its layers, into the only row of this one."""
        (own,), (given,) = self.runs, other.runs
        for layer, both in enumerate(zip(given.block.keys, given.block.values, strict=True)):
            for new, old in zip((own.block.keys[layer], own.block.values[layer]), both, strict=True):
                new[own.offset, :, :tokens] = old[given.offset, :, :tokens]

    def advance(self, tokens: int) -> "Cache":
        """Count so many tokens of each row, which all layers have just read."""
        return self.advance_each([tokens] * len(self.slots))

    def advance_each(self, tokens: Sequence[int]) -> "Cache":
        """Count the tokens of each row that all layers have just read."""
        counts = tuple(count + own for count, own in zip(self.counts, tokens, strict=True))
        more = tokens[0] if len({*tokens}) == 1 else to_device(tokens, self.lengths.device)
        return replace(self, counts=counts, lengths=self.lengths + more)

    def select(self, rows: Sequence[int]) -> "Cache":
        return Cache.of(self.memory, [self.slots[row] for row in rows], [self.counts[row] for row in rows])

    def repeat(self, slots: Sequence[Sequence[int]]) -> "Cache":
        """Copy each row into further slots; `slots[i]` begins with the slot that row i has."""
        tokens = max(self.counts)
        for own, (_, *others) in zip(self.slots, slots, strict=True):
            for other in others:
                self.memory.copy(own, other, tokens)
        counts = [count for count, some in zip(self.counts, slots, strict=True) for _ in some]
        return Cache.of(self.memory, [slot for some in slots for slot in some], counts)

    @staticmethod
    def join(parts: Sequence["Cache"]) -> "Cache":
        slots = [slot for part in parts for slot in part.slots]
        return Cache.of(parts[0].memory, slots, [count for part in parts for count in part.counts])
