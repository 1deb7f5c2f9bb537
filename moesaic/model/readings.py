"""What several decoders have read of the same rows: the tokens, and for each decoder a cache of the rows it was asked.

A decoder that was not asked about a row falls behind, and reads what it has missed in one pass when it is asked again.
Knows nothing about routers or weights.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from moesaic.errors import GatesError
from moesaic.model.decoder import Decoder
from moesaic.nn import Cache


@dataclass
class Shelf:
    """A cache, and where in it each of n rows stands; -1: nowhere."""

    cache: Cache
    places: Int[Tensor, " n"]

    def select(self, rows: Int[Tensor, " g"]) -> "Shelf":
        places = self.places[rows]
        held = places >= 0
        cache = self.cache.select(places[held])
        return Shelf(cache, places.masked_scatter(held, torch.arange(int(held.sum()), device=places.device)))

    def seat(self, rows: Int[Tensor, " g"], like: Decoder) -> Int[Tensor, " g"]:
        """Where these rows stand; those that stand nowhere get a place, with nothing read."""
        new = rows[self.places[rows] < 0]
        if len(new):
            size = len(self.cache.lengths)
            empty = Cache.empty(like.config, len(new), self.cache.capacity, like.norm.weight)
            self.cache = Cache.join([self.cache, empty]) if size else empty
            self.places = self.places.index_copy(0, new, torch.arange(size, size + len(new), device=new.device))
        return self.places[rows]


@dataclass
class Running:
    """The states of n rows, pooled as far as they have been read: what a router reads that decides at every token."""

    total: Float[Tensor, "n d"]
    last: Float[Tensor, "n d"]

    def add(self, x: Float[Tensor, "n t d"], lengths: Int[Tensor, " n"]) -> None:
        """The states of the next tokens, `lengths` of them in each row."""
        rows = torch.arange(len(x), device=x.device)
        real = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        self.total, self.last = self.total + (x * real[..., None]).sum(1), x[rows, lengths - 1]

    def select(self, rows: Int[Tensor, " g"]) -> "Running":
        return Running(self.total[rows], self.last[rows])

    @staticmethod
    def join(parts: list["Running"]) -> "Running":
        return Running(torch.cat([part.total for part in parts]), torch.cat([part.last for part in parts]))


@dataclass
class Readings:
    """The tokens of n rows, `lengths` of each, with room for more; and how far each decoder, by its number, has read.

    `running`: of a router that reads on while the rows grow; None: whoever answers has been decided.
    """

    ids: Int[Tensor, "n c"]
    lengths: Int[Tensor, " n"]
    shelves: dict[int, Shelf] = field(default_factory=dict)
    running: Running | None = None

    @staticmethod
    def begin(ids: Int[Tensor, "n t"], lengths: Int[Tensor, " n"], room: int) -> "Readings":
        """Of right-padded prompts, nothing of which has been read; `room`: how many tokens may follow."""
        return Readings(F.pad(ids, (0, room)), lengths)

    def add(self, ids: Int[Tensor, " n"]) -> None:
        """One more token of each row."""
        self.ids = self.ids.scatter(1, self.lengths[:, None], ids[:, None])
        self.lengths = self.lengths + 1

    def read(
        self, number: int, decoder: Decoder, rows: Int[Tensor, " g"], layers: range
    ) -> tuple[Float[Tensor, "g t d"], Int[Tensor, " g"]]:
        """Let a decoder read all that it has not read of these rows: the states behind `layers`, and the last's place.

        t is the most that any row has missed; a row that has missed less repeats some, which changes nothing.
        """
        shelf = self.shelves.get(number)
        if shelf is None:
            cache = Cache.empty(decoder.config, 0, self.ids.shape[1], decoder.norm.weight)
            shelf = self.shelves[number] = Shelf(cache, torch.full_like(self.lengths, -1))
        at = shelf.seat(rows, decoder)
        whole = at.equal(torch.arange(len(shelf.cache.lengths), device=at.device))
        own = shelf.cache if whole else shelf.cache.select(at)
        lengths = self.lengths[rows]
        missed = int((lengths - own.lengths).max())
        starts = (lengths - missed).clamp_min(0)
        own.lengths = starts
        chunk = self.ids[rows].gather(1, starts[:, None] + torch.arange(missed, device=starts.device))
        x, _ = decoder.run(decoder.embed_tokens(chunk), own, layers, None)
        own.advance(lengths - starts)
        if not whole:
            shelf.cache.put(at, own)
        return x, lengths - starts - 1

    def select(self, rows: Int[Tensor, " g"]) -> "Readings":
        """Some of the rows, in the order given (a row may be taken more than once)."""
        shelves = {number: shelf.select(rows) for number, shelf in self.shelves.items()}
        held = {number: shelf for number, shelf in shelves.items() if len(shelf.cache.lengths)}
        return Readings(self.ids[rows], self.lengths[rows], held, self.running and self.running.select(rows))

    @staticmethod
    def join(parts: list["Readings"]) -> "Readings":
        """All rows of several, with the largest room among them."""
        width = max(part.ids.shape[1] for part in parts)
        ids = torch.cat([F.pad(part.ids, (0, width - part.ids.shape[1])) for part in parts])
        running = [part.running for part in parts if part.running]
        if running and len(running) < len(parts):
            raise GatesError("some rows are decided once and others at every token", hint="join rows of one kind")
        lengths = torch.cat([part.lengths for part in parts])
        joined = Readings(ids, lengths, running=Running.join(running) if running else None)
        for number in sorted({number for part in parts for number in part.shelves}):
            places, caches, size = [], list[Cache](), 0
            for part in parts:
                if number not in part.shelves:
                    places.append(torch.full_like(part.lengths, -1))
                    continue
                shelf = part.shelves[number]
                places.append(torch.where(shelf.places < 0, -1, shelf.places + size))
                caches.append(shelf.cache)
                size += len(shelf.cache.lengths)
            joined.shelves[number] = Shelf(Cache.join([c.grow(width) for c in caches]), torch.cat(places))
        return joined
