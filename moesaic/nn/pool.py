"""Slots of different sizes for keys and values, cut from bytes that are allocated once.

The bytes are a hard bound, also for several decoders that share them. A slot is the memory of one row: a piece for each
decoder that reads the row. Knows nothing about models, nor who gets how much.
"""

from bisect import insort
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F

from moesaic.config import DecoderConfig
from moesaic.errors import MemoryLimitError
from moesaic.nn.cache import SlotBlock, SlotRun

FEWEST = 16  # tokens of the smallest piece
USUAL = 8192  # tokens of a pool whose size is not given
ALIGNED = 64  # bytes


def capacity(tokens: int) -> int:
    """The capacity of a piece for so many tokens: a power of two, or three quarters of one.

    Few different capacities make neighbours of equal size, which attention reads together.
    """
    whole = 1 << max(tokens - 1, FEWEST - 1).bit_length()
    return whole * 3 // 4 if whole > FEWEST and tokens <= whole * 3 // 4 else whole


class Arena:
    """Bytes that are allocated once; pieces are cut from them, the first gap first, and given back."""

    def __init__(self, size: int, device: torch.device):
        self.bytes = torch.zeros(size, dtype=torch.uint8, device=device)
        self.pieces: list[tuple[int, int]] = []  # start and end of each, in order

    def cut(self, size: int) -> int:
        """The start of a new piece, filled with zeros; MemoryLimitError if no gap is large enough."""
        start = 0
        for at, end in self.pieces:
            if at - start >= size:
                break
            start = end
        if start + size > len(self.bytes):
            raise MemoryLimitError("no gap in the memory of keys and values is large enough", got=f"{size} bytes")
        insort(self.pieces, (start, start + size))
        self.bytes[start : start + size].zero_()  # nothing of another row, and no NaN from values of another type
        return start

    def free(self, start: int, size: int) -> None:
        self.pieces.remove((start, start + size))


@dataclass(frozen=True)
class Piece:
    """Keys and values of one decoder and one row, for at most `capacity` tokens."""

    start: int
    size: int
    capacity: int


class Pieces:
    """The pieces of one decoder in an arena, by the slots of their rows."""

    def __init__(self, arena: Arena, config: DecoderConfig, like: Tensor):
        self.arena, self.config, self.dtype, self.device = arena, config, like.dtype, like.device
        self.held: dict[int, Piece] = {}
        self.read: dict[int, int] = {}  # tokens of each row that the decoder has read, for those that may fall behind

    @property
    def memory(self) -> "Pieces":
        return self

    def seat(self, slots: Sequence[int]) -> Sequence[int]:
        """The slots themselves: each has had its piece from the start."""
        return slots

    def capacity(self, tokens: int) -> int:
        """Tokens of a piece for so many; never more than the decoder's context."""
        return min(capacity(tokens), self.config.context)

    def size(self, tokens: int) -> int:
        """Bytes of a piece for so many tokens."""
        return self.bytes(self.capacity(tokens))

    def bytes(self, tokens: int) -> int:
        """Bytes of so many tokens' keys and values."""
        values = 2 * self.config.num_layers * self.config.num_kv_heads * self.config.head_dim * tokens
        return -(-values * self.dtype.itemsize // ALIGNED) * ALIGNED

    def open(self, slot: int, tokens: int) -> None:
        size = self.size(tokens)
        self.held[slot] = Piece(self.arena.cut(size), size, self.capacity(tokens))

    def widen(self, slot: int, tokens: int) -> None:
        """Move a row to a larger piece if its own is too small; MemoryLimitError leaves it where it is."""
        before = self.held[slot]
        if before.capacity < tokens:
            self.open(slot, tokens)
            self.layers(self.held[slot], 1)[..., : before.capacity, :] = self.layers(before, 1)
            self.arena.free(before.start, before.size)

    def free(self, slot: int) -> None:
        piece = self.held.pop(slot)
        self.read.pop(slot, None)
        self.arena.free(piece.start, piece.size)

    def copy(self, source: int, target: int, tokens: int) -> None:
        one, other = self.held[source], self.held[target]
        self.layers(other, 1)[..., :tokens, :] = self.layers(one, 1)[..., :tokens, :]

    def layers(self, first: Piece, rows: int) -> Tensor:
        """Keys and values of neighbouring pieces of equal size: (rows, layers, 2, h, capacity, hd)."""
        config, width = self.config, self.dtype.itemsize
        inner = (config.num_layers, 2, config.num_kv_heads, first.capacity, config.head_dim)
        strides = [1]
        for size in reversed(inner[1:]):
            strides.insert(0, strides[0] * size)
        every = self.arena.bytes[: len(self.arena.bytes) // ALIGNED * ALIGNED].view(self.dtype)
        return every.as_strided((rows, *inner), (first.size // width, *strides), first.start // width)

    def runs(self, slots: Sequence[int]) -> tuple[SlotRun, ...]:
        """Group rows whose pieces are neighbours of equal size; attention reads each run without copying."""
        groups: list[list[Piece]] = []
        for piece in map(self.held.__getitem__, slots):
            last = groups[-1][-1] if groups else None
            if last and piece.capacity == last.capacity and piece.start == last.start + last.size:
                groups[-1].append(piece)
            else:
                groups.append([piece])
        found, start = [], 0
        for some in groups:
            both = [layer.unbind(1) for layer in self.layers(some[0], len(some)).unbind(1)]
            block = SlotBlock(0, [keys for keys, _ in both], [values for _, values in both])
            found.append(SlotRun(start, start + len(some), block, 0))
            start += len(some)
        return tuple(found)


class Pool:
    """Slots of rows in one arena: each has a piece for every decoder that reads its row.

    `decoders`: config and a tensor of the type and device of each, by number. `size`: the bytes of all slots together;
    None: so many that each decoder could have 8,192 tokens, or one row of the longest context.
    """

    def __init__(self, decoders: Mapping[int, tuple[DecoderConfig, Tensor]], size: int | None):
        device = next(like.device for _, like in decoders.values())
        every = [Pieces(Arena(0, device), *given) for given in decoders.values()]
        usual = sum(pieces.bytes(max(USUAL, pieces.config.context)) for pieces in every)
        self.arena = Arena(usual if size is None else size, device)
        self.pieces = {number: Pieces(self.arena, *given) for number, given in decoders.items()}
        self.ids: dict[int, Int[Tensor, " t"]] = {}  # tokens of rows whose decoders may fall behind
        self.next = 0

    @property
    def bound(self) -> int:
        return len(self.arena.bytes)

    def size(self, numbers: Collection[int], tokens: int) -> int:
        """Bytes of a slot of so many tokens for these decoders."""
        return sum(self.pieces[number].size(tokens) for number in numbers)

    def held(self, slot: int) -> list[Pieces]:
        return [pieces for pieces in self.pieces.values() if slot in pieces.held]

    def capacity(self, slot: int) -> int:
        """Tokens that a slot has room for."""
        return min(pieces.held[slot].capacity for pieces in self.held(slot))

    def taken(self, slot: int) -> int:
        """Bytes of this slot."""
        return sum(pieces.held[slot].size for pieces in self.held(slot))

    def start(self, slot: int) -> int:
        """Where a slot begins: rows in this order have neighbouring memory."""
        return min(pieces.held[slot].start for pieces in self.held(slot))

    def open(self, numbers: Collection[int], tokens: int) -> int:
        """A new slot of so many tokens for these decoders; MemoryLimitError if the gaps are too small."""
        slot, self.next = self.next, self.next + 1
        try:
            for number in numbers:
                self.pieces[number].open(slot, tokens)
        except MemoryLimitError:
            self.free(slot)
            raise
        return slot

    def widen(self, slot: int, tokens: int) -> None:
        """Give a slot room for so many tokens; MemoryLimitError if the gaps are too small, and nothing is lost."""
        for pieces in self.held(slot):
            pieces.widen(slot, tokens)

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Copy the first tokens of one slot to another, which has the same decoders."""
        for pieces in self.held(source):
            pieces.copy(source, target, tokens)

    def free(self, slot: int) -> None:
        self.ids.pop(slot, None)
        for pieces in self.held(slot):
            pieces.free(slot)

    def shelf(self, number: int) -> Pieces:
        return self.pieces[number]

    def note(self, slots: Sequence[int], ids: Int[Tensor, "n t"], starts: Sequence[int], counts: Sequence[int]) -> None:
        """Keep the next tokens of these rows: from each start so many as are counted."""
        for slot, row, start, count in zip(slots, ids, starts, counts, strict=True):
            self.ids[slot] = torch.cat([self.ids[slot][:start], row[:count]]) if start else row[:count]

    def noted(self, slots: Sequence[int], starts: Sequence[int], t: int) -> Int[Tensor, "n t"]:
        """t tokens of each row from its start, padded on the right."""
        rows = [self.ids[slot][start : start + t] for slot, start in zip(slots, starts, strict=True)]
        return torch.stack([F.pad(row, (0, t - len(row))) for row in rows])
