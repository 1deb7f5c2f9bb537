"""Tokens of a batch, and for each of several decoders a cache of the rows that it answers.

A decoder that does not answer a row falls behind, and reads the missed tokens in one pass when it answers again.
`Shelves` is the memory of a batch; `Readings` is a value that names the rows in it. Knows nothing about routers or
weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moesaic.model.decoder import Decoder
from moesaic.model.features import last
from moesaic.nn import Cache, Pool, Slots, Spare
from moesaic.ops.host import to_device


class Shelf:
    """Memory of one decoder for the rows that it answers: by the slot of a row, its place and number of tokens read."""

    def __init__(self, memory: Slots):
        self.memory, self.places, self.read = memory, dict[int, int](), dict[int, int]()

    def seat(self, slots: Sequence[int]) -> list[int]:
        """The places of these rows; new rows get a place with nothing read, and the memory grows as needed."""
        new = [slot for slot in slots if slot not in self.places]
        if (missing := len(new) - len(self.memory.spare)) > 0:
            self.memory.grow(missing)
        self.places |= zip(new, self.memory.spare.take(len(new)), strict=True)
        self.read |= dict.fromkeys(new, 0)
        return [self.places[slot] for slot in slots]

    def free(self, slots: Sequence[int]) -> None:
        held = [slot for slot in slots if slot in self.places]
        self.memory.free([self.places.pop(slot) for slot in held])
        for slot in held:
            del self.read[slot]

    def copy(self, source: int, target: int) -> None:
        if source in self.places:
            (place,) = self.seat([target])
            self.memory.copy(self.places[source], place, self.read[source])
            self.read[target] = self.read[source]


class Shelves:
    """Memory of a batch: slots of `capacity` tokens, and a shelf for each decoder that is asked, by its number.

    The type of a decoder is that of its weights when it is asked: before, an expert may not be in memory.
    """

    def __init__(self, decoders: Mapping[int, Decoder], rows: int, capacity: int, device: torch.device):
        self.decoders, self.ids = decoders, torch.zeros(rows, capacity, dtype=torch.long, device=device)
        self.spare = Spare(range(rows))
        self.shelves: dict[int, Shelf] = {}

    def shelf(self, number: int) -> Shelf:
        if number not in self.shelves:
            decoder = self.decoders[number]
            self.shelves[number] = Shelf(Slots(decoder.config, 0, self.ids.shape[1], decoder.norm.weight))
        return self.shelves[number]

    def free(self, slots: Sequence[int]) -> None:
        for shelf in self.shelves.values():
            shelf.free(slots)
        self.spare.add(slots)

    def note(self, slots: Sequence[int], ids: Int[Tensor, "n t"], starts: Sequence[int], counts: Sequence[int]) -> None:
        """Keep the next tokens of these rows; those beyond `counts` are padding, which later ones replace."""
        at, first = to_device([slots, starts], ids.device)[..., None]
        self.ids[at, first + torch.arange(ids.shape[1], device=ids.device)] = ids

    def noted(self, slots: Sequence[int], starts: Sequence[int], t: int) -> Int[Tensor, "n t"]:
        """t tokens of each row from its start."""
        at, first = to_device([slots, starts], self.ids.device)[..., None]
        return self.ids[at, first + torch.arange(t, device=self.ids.device)]

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Copy the first tokens of one slot to another, with every decoder's cache of them."""
        self.ids[target, :tokens] = self.ids[source, :tokens]
        for shelf in self.shelves.values():
            shelf.copy(source, target)


@dataclass(frozen=True)
class Running:
    """Running sum (in float32 at least) and last of the states of n rows, which a router reads at every token.

    `anew`: whether a row is decided at every token; the states of other rows are 0.
    """

    anew: tuple[bool, ...]
    total: Float[Tensor, "n d"]
    last: Float[Tensor, "n d"]

    @property
    def rows(self) -> list[int]:
        return [row for row, anew in enumerate(self.anew) if anew]

    def add(self, x: Float[Tensor, "g t d"], counts: Sequence[int]) -> "Running":
        """Add the states of the next tokens of `rows`, `counts` of them in each."""
        rows, lengths = to_device([self.rows, counts], x.device)
        real = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        total = self.total.index_add(0, rows, (x * real[..., None]).sum(1, dtype=self.total.dtype))
        return Running(self.anew, total, self.last.index_copy(0, rows, last(x, counts)))

    def select(self, rows: Sequence[int]) -> "Running":
        kept = to_device(rows, self.total.device)
        return Running(tuple(self.anew[row] for row in rows), self.total[kept], self.last[kept])

    @staticmethod
    def join(parts: Sequence["Running"]) -> "Running":
        anew = tuple(anew for part in parts for anew in part.anew)
        return Running(anew, torch.cat([part.total for part in parts]), torch.cat([part.last for part in parts]))


@dataclass(frozen=True)
class Readings:
    """Rows of a batch by their slots, and the number of tokens in each.

    `running`: for a router that decides at every token; None: the prompt has decided.
    """

    room: Shelves | Pool
    slots: tuple[int, ...]
    lengths: tuple[int, ...]
    running: Running | None = None

    def add(self, ids: Int[Tensor, "n t"], counts: Sequence[int]) -> "Readings":
        """The same rows with so many more tokens each, which no decoder has read yet; `ids`: right-padded."""
        self.room.note(self.slots, ids, self.lengths, counts)
        return replace(self, lengths=tuple(length + count for length, count in zip(self.lengths, counts, strict=True)))

    def read(
        self, number: int, decoder: Decoder, rows: Sequence[int], layers: range
    ) -> tuple[Float[Tensor, "g t d"], list[int]]:
        """Let a decoder read all missed tokens of these rows: the states behind `layers`, and how many each row has.

        t is the largest number of missed tokens, at least 1; rows that have missed fewer read some again, without
        effect.
        """
        shelf = self.room.shelf(number)
        slots, lengths = [self.slots[row] for row in rows], [self.lengths[row] for row in rows]
        places = shelf.seat(slots)
        missed = max(1, *(length - shelf.read[slot] for slot, length in zip(slots, lengths, strict=True)))
        first = [max(length - missed, 0) for length in lengths]
        chunk = self.room.noted(slots, first, missed)
        x, _ = decoder.run(decoder.embed_tokens(chunk), Cache.of(shelf.memory, places, first), layers, None)
        shelf.read |= zip(slots, lengths, strict=True)
        return x, [length - start for length, start in zip(lengths, first, strict=True)]

    def select(self, rows: Sequence[int]) -> "Readings":
        running = self.running.select(rows) if self.running else None
        slots, lengths = tuple(self.slots[row] for row in rows), tuple(self.lengths[row] for row in rows)
        return Readings(self.room, slots, lengths, running)

    def repeat(self, slots: Sequence[Sequence[int]]) -> "Readings":
        rows = [row for row, some in enumerate(slots) for _ in some]
        for own, length, (_, *others) in zip(self.slots, self.lengths, slots, strict=True):
            for other in others:
                self.room.copy(own, other, length)
        return replace(self.select(rows), slots=tuple(slot for some in slots for slot in some))

    @staticmethod
    def join(parts: Sequence["Readings"]) -> "Readings":
        slots = tuple(slot for part in parts for slot in part.slots)
        lengths = tuple(length for part in parts for length in part.lengths)
        running = [part.running for part in parts if part.running]
        return Readings(parts[0].room, slots, lengths, Running.join(running) if running else None)
