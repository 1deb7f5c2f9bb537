"""Texts that may have a duplicate under another key, found in a fixed amount of memory.

A text whose shingles are for the larger part found under its own key alone has no near duplicate elsewhere. Shingles
are sorted in pieces on disk, as there are many more of them than fit. Knows nothing about overlaps of two texts.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import chain, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesaic.data.words import folded, words
from moesaic.files import disk

Key = tuple[str, str]  # (domain, split)
Place = tuple[str, str, int]  # (domain, split, index)
Watch = Callable[[Collection[str]], Iterable[str]]
"""Passes texts on, and may report how many are read."""

WIDTH = 5  # words in a shingle
MIX = np.uint64(0x9E3779B97F4A7C15)  # an odd multiplier with well-spread bits, which hashes the words of a shingle
PIECE = 1 << 19
"""Words whose shingles are sorted together."""
TOGETHER = 1 << 21
"""Shingles that are compared together."""
ENTRY = np.dtype([("shingle", "<u8"), ("text", "<u4")])
ENDS = ".?!,;:"
"""Marks, beside letters and digits, behind which a text can be continued without a change of its words."""


def shortlist(texts: Mapping[Key, Sequence[str]], near: float, watch: Watch = iter) -> list[Place]:
    """The texts that may have a duplicate under another key: all that have one, and few others, in their order.

    A near duplicate shares at least `near` of its shingles with a text of another key.
    """
    sizes = [len(rows) for rows in texts.values()]
    keys = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    with ExitStack() as stack:
        found = Shingles(len(keys), stack)
        every = iter(watch(Every(texts.values())))
        for size in sizes:
            found.read(islice(every, size))
        next(every, None)  # the report of the last text
        found.sort()
        chosen = shared(found.equal, keys) | found.crossing(keys, near)
    first = np.cumsum([0, *sizes])
    return [
        (*key, int(at))
        for key, start, size in zip(texts, first, sizes, strict=False)
        for at in numbers_of(chosen[start : start + size])
    ]


class Every(Collection[str]):
    """All texts of some sequences, one after another."""

    def __init__(self, parts: Iterable[Sequence[str]]):
        self.parts = [*parts]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(self.parts)

    def __contains__(self, text: object) -> bool:
        return any(text in part for part in self.parts)


def numbers_of(chosen: NDArray[np.bool_]) -> list[int]:
    return np.flatnonzero(chosen).tolist()


def shared(values: NDArray[Any], keys: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Whether the value of each text is also that of a text with another key."""
    order = np.argsort(values, kind="stable")
    found = np.zeros(len(values), np.bool_)
    found[order] = _across(values[order], keys[order])
    return found


def _across(values: NDArray[Any], keys: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Of sorted values, whether each occurs with several keys."""
    if not len(values):
        return np.zeros(0, np.bool_)
    starts = np.flatnonzero(np.append(True, values[1:] != values[:-1]))
    apart = np.minimum.reduceat(keys, starts) != np.maximum.reduceat(keys, starts)
    return np.repeat(apart, np.diff(np.append(starts, len(values))))


class Shingles:
    """The distinct shingles of texts, in sorted pieces; those of a text that continues the one before are its new ones.

    `equal`: a hash of each text; `fresh`: its number of new shingles; `begins`: whether it continues no other.
    """

    def __init__(self, texts: int, stack: ExitStack):
        self.equal = np.zeros(texts, np.int64)
        self.fresh, self.begins = np.zeros(texts, np.int32), np.zeros(texts, np.bool_)
        self.pieces: list[NDArray[Any]] = []
        self._stack, self._at = stack, 0
        self._words: list[NDArray[np.int64]] = []
        self._ends, self._starts = list[int](), list[int]()  # of the texts in `_words`, and of those that begin
        self._first = self._size = 0

    def read(self, texts: Iterable[str]) -> None:
        """Add the texts of one key."""
        last = ""
        for text in texts:
            self.equal[self._at] = hash(folded(text))
            if continues(text, last) and self._size:
                self._add(words(text[len(last) :]))
            else:
                if self._size >= PIECE:
                    self.sort()
                self.begins[self._at] = True
                self._starts.append(self._size)
                self._add(found := words(text))
                text = text if any(map(str.isalnum, found)) else ""  # of marks alone, so that it has other words
            last, self._at = text, self._at + 1

    def _add(self, found: list[str]) -> None:
        self._words.append(np.array([*map(hash, found)], np.int64))
        self._size += len(found)
        self._ends.append(self._size)

    def sort(self) -> None:
        """Sort the shingles of the texts that were read, and keep them on disk once there are many."""
        numbers = np.concatenate([np.empty(0, np.int64), *self._words]).view(np.uint64)
        starts, ends = np.array(self._starts, np.int64), np.array(self._ends, np.int64)
        self._words, self._starts, self._ends, self._size = [], [], [], 0
        first, self._first = self._first, self._at
        if len(numbers) < WIDTH:
            return
        count = len(numbers) - WIDTH + 1
        shingles = np.zeros(count, np.uint64)
        for start in range(WIDTH):
            shingles = (shingles + numbers[start : start + count] + np.uint64(1)) * MIX
        chain = np.searchsorted(starts, np.arange(len(numbers)), side="right")
        inside = np.flatnonzero(chain[:count] == chain[WIDTH - 1 :])
        order = inside[np.lexsort((inside, shingles[inside], chain[inside]))]
        new = np.append(True, (shingles[order][1:] != shingles[order][:-1]) | (chain[order][1:] != chain[order][:-1]))
        order = order[new[: len(order)]]
        entries = np.empty(len(order), ENTRY)
        entries["shingle"] = shingles[order]
        entries["text"] = first + np.searchsorted(ends, order + WIDTH)
        self.fresh += np.bincount(entries["text"], minlength=len(self.fresh)).astype(np.int32)
        self._keep(entries[np.argsort(entries["shingle"], kind="stable")])

    def _keep(self, entries: NDArray[Any]) -> None:
        self.pieces.append(entries)
        if sum(map(len, self.pieces)) > TOGETHER and len(entries):
            if not hasattr(self, "_folder"):
                self._folder = self._stack.enter_context(disk.private())
            for number, piece in enumerate(self.pieces):
                if not isinstance(piece, np.memmap):
                    at = self._folder / f"{number}.bin"
                    disk.create(at, piece.tobytes())
                    self.pieces[number] = np.memmap(at, ENTRY, "r")

    def crossing(self, keys: NDArray[np.int32], near: float) -> NDArray[np.bool_]:
        """Whether at least `near` of the shingles of each text are also found with other keys."""
        found = np.zeros(len(keys), np.int64)
        for entries in self._ranges():
            entries = entries[np.argsort(entries["shingle"], kind="stable")]
            across = _across(entries["shingle"], keys[entries["text"]])
            found += np.bincount(entries["text"][across], minlength=len(keys))
        sizes, found = self._whole(self.fresh), self._whole(found)
        return (sizes > 0) & (found >= np.ceil(near * sizes - 1e-9))

    def _ranges(self) -> Iterator[NDArray[Any]]:
        """All shingles, in ranges of their values that fit into memory."""
        count = -(-sum(map(len, self.pieces)) // TOGETHER)
        bounds = [np.uint64((1 << 64) * number // count) for number in range(1, count)]
        cuts = [[0, *np.searchsorted(piece["shingle"], bounds).tolist(), len(piece)] for piece in self.pieces]
        for number in range(count):
            yield np.concatenate(
                [piece[cut[number] : cut[number + 1]] for piece, cut in zip(self.pieces, cuts, strict=True)]
            )

    def _whole(self, fresh: NDArray[Any]) -> NDArray[np.int64]:
        """Numbers of the whole texts, from those of what each adds to the one before."""
        sums = np.cumsum(fresh, dtype=np.int64)
        before = (sums - fresh)[self.begins]
        return sums - np.repeat(before, np.diff(np.append(np.flatnonzero(self.begins), len(fresh))))


def continues(text: str, last: str) -> bool:
    """Whether the words of a text are those of the one before it, and then more."""
    end, rest = last[-1:], text[len(last) : len(last) + 2]
    return (
        bool(last)
        and (end.isalnum() or end in ENDS)
        and rest[:1] == "\n"
        and rest[1:].isalnum()
        and text.startswith(last)
    )
