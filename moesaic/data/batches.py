"""Token ids of examples, padded or packed into batches, in an order that is a pure function of (seed, step).

Knows nothing about files, splits or models, and only a small interface of tokenizers.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Generic, Protocol, TypeVar, overload, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int
from numpy.random import Philox, SeedSequence
from numpy.typing import NDArray
from torch import Tensor

from moesaic.data.cuts import Counted, lengths_of, lost_of, truncated
from moesaic.data.rows import Example
from moesaic.errors import DataError
from moesaic.hardware import sent
from moesaic.ops.losses import UNSCORED, Targets
from moesaic.tokenizer import Exchange

WINDOW = 16
"""Batches whose rows are sorted by length together: more give less padding, fewer give more mixing."""


@runtime_checkable
class TokenizerLike(Protocol):
    """The interface of tokenizers that encoding needs."""

    @property
    def eos(self) -> int:
        """The token that ends a text."""

    @property
    def start(self) -> tuple[int, ...]:
        """Tokens at the start of every sequence."""

    def beginnings(self, texts: Iterable[str]) -> Iterator[list[int]]:
        """Ids of texts, including `start`."""

    def exchanges(self, exchanges: Iterable[Exchange]) -> Iterator[tuple[list[int], list[int]]]:
        """Ids of prompts, including `start`, and of the responses to them, including their ends."""


@dataclass(frozen=True)
class Tokens:
    """An example as token ids; ids after the first `prompt` are scored. `source`: file and line, for people.

    `lost`: the number of ids that were cut off. `cut`: the prompt lost its beginning, as it was too long.
    """

    ids: list[int]
    prompt: int
    group: str
    lost: int = 0
    source: str = field(default="", compare=False)
    cut: bool = field(default=False, compare=False)

    @property
    def judged_by(self) -> list[Any]:
        """All that the score of the row depends on."""
        return [self.ids, self.prompt]

    def __post_init__(self) -> None:
        if not 0 < self.prompt < len(self.ids):
            raise DataError(
                "an example is too short, or cut too short, to be scored",
                path=self.source or None,
                expected="at least one token of prompt and one after it",
                got=f"{self.prompt} of {len(self.ids)}",
            )


@dataclass(frozen=True)
class Batch:
    """Right-padded token ids, and for each id the next one, or `UNSCORED`.

    `documents`: the number of each token's text within its row, from 1 on, where tokens see only their own text.
    """

    ids: Int[Tensor, "b t"]
    targets: Int[Tensor, "b t"]
    documents: Int[Tensor, "b t"] | None = None

    def on(self, device: torch.device | None) -> "Batch":
        """The same on a device; the targets stay on the host, where those that are scored are found."""
        documents = None if self.documents is None else sent(self.documents, device)
        return Batch(sent(self.ids, device), self.targets, documents)

    @property
    def scored(self) -> Targets:
        """The targets that are scored."""
        return Targets.of(self.targets)


def encode_all(
    examples: Sequence[Example],
    tokenizer: TokenizerLike,
    length: int,
    prompt_tokens: int,
    watch: Callable[[Sequence[Example]], Iterable[Example]] = iter,
) -> tuple[list[Tokens], int]:
    """Encode every example as at most `length` ids, with an end token unless it is truncated; also counts those.

    Plain text is encoded as it is: its prompt is its first `prompt_tokens` ids, at most half of them. If prompt and
    response do not both fit, the response gets half of `length`, or all that the prompt leaves; the prompt keeps its
    end and `start`. `watch`: passes examples on, and may report how many are encoded. DataError for an example that a
    chat template refuses.
    """
    texts = tokenizer.beginnings(one.response for one in examples if not one.prompt)
    exchanges = tokenizer.exchanges(exchange_of(one) for one in examples if one.prompt)
    rows = [
        _answering(one, *next(exchanges), tokenizer.start, length)
        if one.prompt
        else _text(one, [*next(texts), tokenizer.eos], length, prompt_tokens)
        for one in watch(examples)
    ]
    return rows, truncated(rows)


def exchange_of(example: Example) -> Exchange:
    """The prompt and the response of an example that is not plain text."""
    return Exchange(example.messages or example.prompt, example.response, example.source)


def _text(example: Example, ids: list[int], length: int, prompt_tokens: int) -> Tokens:
    kept = ids[:length]
    given = max(1, min(prompt_tokens, len(kept) // 2))
    return Tokens(kept, given, example.group, len(ids) - len(kept), example.source)


def _answering(example: Example, prompt: list[int], response: list[int], start: tuple[int, ...], length: int) -> Tokens:
    whole = len(prompt) + len(response)
    response = response[: max(length // 2, length - len(prompt))]
    cut = len(prompt) + len(response) > length
    if cut:
        kept = [*start] if prompt[: len(start)] == [*start] else []
        prompt = kept + prompt[len(prompt) + len(response) - length + len(kept) :]
    ids = prompt + response
    return Tokens(ids, len(prompt), example.group, whole - len(ids), example.source, cut)


def pad(rows: list[Tokens], score_prompt: bool = False) -> Batch:
    """Pad rows to a batch; a row's last id is only a target, so the width is the longest row minus one."""
    ids = torch.zeros(len(rows), max(len(row.ids) for row in rows) - 1, dtype=torch.long)
    targets = torch.full_like(ids, UNSCORED)
    for i, row in enumerate(rows):
        tokens, first = torch.tensor(row.ids), 1 if score_prompt else row.prompt
        ids[i, : len(tokens) - 1] = tokens[:-1]
        targets[i, first - 1 : len(tokens) - 1] = tokens[first:]
    return Batch(ids, targets)


def by_length(lengths: Sequence[int], batch: int) -> Iterator[list[int]]:
    """Batches of the indices of rows of similar length, shortest first; a stable sort with every index once."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    for start in range(0, len(order), batch):
        yield order[start : start + batch]


@runtime_checkable
class RowLike(Protocol):
    """A row that can be scheduled."""

    @property
    def ids(self) -> list[int]: ...
    @property
    def source(self) -> str: ...


R = TypeVar("R", bound=RowLike)


class Joined(Counted, Sequence[R]):
    """The rows of several sequences as one. `evenly`: those of shorter ones repeated until all are as long."""

    def __init__(self, parts: Sequence[Sequence[R]], evenly: bool = False):
        self.parts = parts
        self.sizes = [max(map(len, parts))] * len(parts) if evenly else [*map(len, parts)]
        self._ends = np.cumsum(self.sizes)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """The number of tokens of every row."""
        return self._all(lengths_of)

    @property
    def lost(self) -> NDArray[np.int64]:
        """The number of tokens that were cut off every row."""
        return self._all(lost_of)

    def __len__(self) -> int:
        return sum(self.sizes)

    @overload
    def __getitem__(self, at: int) -> R: ...
    @overload
    def __getitem__(self, at: slice) -> list[R]: ...
    def __getitem__(self, at: int | slice) -> R | list[R]:
        if isinstance(at, slice):
            return [self[one] for one in range(*at.indices(len(self)))]
        at = range(len(self))[at]
        number = int(np.searchsorted(self._ends, at, side="right"))
        part = self.parts[number]
        return part[(at - int(self._ends[number]) + self.sizes[number]) % len(part)]

    def _all(self, of: Callable[[Sequence[R]], NDArray[np.int64]]) -> NDArray[np.int64]:
        return np.concatenate([np.resize(of(part), size) for part, size in zip(self.parts, self.sizes, strict=True)])


class Schedule(Generic[R]):
    """The rows of every training step: each row once per epoch, in batches of similar length.

    One batch of an epoch is smaller if the batch size does not divide the number of rows.
    """

    def __init__(self, rows: Sequence[R], batch: int, seed: int):
        if not rows:
            raise DataError("no rows to train on")
        self.rows, self.batch, self.seed = rows, batch, seed
        self.steps = -(-len(rows) // batch)  # of an epoch
        self._lengths = lengths_of(rows)
        self._epoch = lru_cache(maxsize=1)(self._draw)

    def __call__(self, step: int) -> list[R]:
        epoch, at = divmod(step, self.steps)
        order, batches = self._epoch(epoch)
        start = int(batches[at]) * self.batch
        return [self.rows[i] for i in order[start : start + self.batch].tolist()]

    def names(self, step: int) -> list[str]:
        return [row.source for row in self(step)]

    def _draw(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The order of the rows in an epoch, and that of the batches cut from it."""
        draw = _stream(self.seed, epoch)
        order = _drawn(draw, len(self.rows))
        window = np.arange(len(order)) // (self.batch * WINDOW)
        return order[np.lexsort((self._lengths[order], window))], _drawn(draw, self.steps)


@runtime_checkable
class Documents(Protocol):
    """Texts as token ids, in memory or on disk."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """The number of tokens of every text."""

    def ids(self, index: int) -> NDArray[Any]:
        """The tokens of a text."""

    def source(self, index: int) -> str:
        """The origin of a text, for people."""


class Held:
    """Texts in memory."""

    def __init__(self, rows: Iterable[Tokens]):
        kept = [(np.asarray(row.ids, dtype=np.int32), row.source) for row in rows]
        self._ids, self._sources = [ids for ids, _ in kept], [source for _, source in kept]
        self.lengths = np.array([len(ids) for ids in self._ids], dtype=np.int64)

    def ids(self, index: int) -> NDArray[Any]:
        return self._ids[index]

    def source(self, index: int) -> str:
        return self._sources[index]


class Packed:
    """The batches of pretraining: all texts concatenated and cut into equal pieces, without padding.

    A piece's last target is the next piece's first input. An incomplete batch at the end of an epoch is dropped; each
    epoch has another order and drops other texts. With fewer pieces than `batch`, the batch size is the number of
    pieces. `apart`: tokens see only their own text, and the first token of a text is no target; otherwise every token
    is scored.
    """

    def __init__(self, documents: Documents, length: int, batch: int, seed: int, apart: bool = False):
        self.documents, self.length, self.seed, self.apart = documents, length, seed, apart
        self.tokens = int(documents.lengths.sum())  # of an epoch
        pieces = (self.tokens - 1) // length
        if pieces < 1:
            raise DataError("too little text to train on", expected=f"more than {length} tokens")
        self.batch = min(batch, pieces)
        self.steps = pieces // self.batch  # of an epoch
        self._epoch = lru_cache(maxsize=1)(self._draw)

    def __call__(self, step: int) -> Batch:
        epoch, at = divmod(step, self.steps)
        order, ends = self._epoch(epoch)
        held, size = self._held(ends, at), self.batch * self.length
        parts = [self.documents.ids(int(i)) for i in order[held]]
        first = int(ends[held.start]) - len(parts[0])  # tokens of the epoch before these texts
        parts[-1] = parts[-1][: len(parts[-1]) - (int(ends[held.stop - 1]) - ((at + 1) * size + 1))]
        parts[0] = parts[0][at * size - first :]
        ids = torch.from_numpy(np.concatenate(parts).astype(np.int64))
        inputs, targets = ids[:-1].reshape(self.batch, -1), ids[1:].reshape(self.batch, -1)
        if not self.apart:
            return Batch(inputs, targets)
        numbers = torch.arange(1, len(parts) + 1).repeat_interleave(torch.tensor([len(part) for part in parts]))
        documents, following = numbers[:-1].reshape(self.batch, -1), numbers[1:].reshape(self.batch, -1)
        return Batch(inputs, targets.masked_fill(following != documents, UNSCORED), documents)

    def names(self, step: int) -> list[str]:
        """Sources of all texts with tokens in a batch, in order, including its last target."""
        epoch, at = divmod(step, self.steps)
        order, ends = self._epoch(epoch)
        return [self.documents.source(int(i)) for i in order[self._held(ends, at)]]

    def epochs(self, steps: int) -> float:
        """How often every token is read in so many batches."""
        return steps * self.batch * self.length / self.tokens

    def _held(self, ends: NDArray[np.int64], at: int) -> slice:
        """The positions, in an epoch's order, of the texts that a batch and its last target are cut from."""
        size = self.batch * self.length
        first, last = np.searchsorted(ends, [at * size, (at + 1) * size], side="right").tolist()
        return slice(first, last + 1)

    def _draw(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The order of the texts in an epoch, and the number of tokens up to the end of each."""
        order = _drawn(_stream(self.seed, epoch), len(self.documents.lengths))
        return order, np.cumsum(self.documents.lengths[order])


def _drawn(draw: Philox, n: int) -> NDArray[np.int64]:
    """A permutation of n: sorts raw draws, which are stable over versions of numpy, unlike shuffles."""
    return draw.random_raw(n).argsort(kind="stable")


def _stream(seed: int, epoch: int) -> Philox:
    return Philox(SeedSequence(seed, spawn_key=(epoch,)))
