"""Token ids of examples, padded or packed into batches, in an order that is a pure function of (seed, step).

Knows nothing about files, splits or models; of a tokenizer only how it begins a sequence, answers and ends.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int
from numpy.random import Philox, SeedSequence
from torch import Tensor

from moesaic.data.rows import Example
from moesaic.errors import DataError
from moesaic.ops.losses import UNSCORED
from moesaic.tokenizer import Conversation

WINDOW = 16
"""Batches whose rows are sorted by length together: more pads less, fewer mixes better."""


@runtime_checkable
class TokenizerLike(Protocol):
    """What encoding needs of a tokenizer."""

    @property
    def eos(self) -> int:
        """The token that ends a text."""

    @property
    def start(self) -> tuple[int, ...]:
        """What stands before the first token of every sequence."""

    def begin(self, prompt: str | Conversation) -> list[int]:
        """Ids of what a sequence begins with, `start` among them."""

    def answer(self, prompt: str | Conversation, response: str) -> list[int]:
        """Ids of a response to it, and of what ends it."""


@dataclass(frozen=True)
class Tokens:
    """One example as a model reads it: the first `prompt` ids are given, those after them are scored.

    `source` says to people where it was read.
    """

    ids: list[int]
    prompt: int
    group: str
    truncated: bool = False
    source: str = field(default="", compare=False)

    @property
    def judged_by(self) -> list[Any]:
        """The tokens of the row, and from where they are scored."""
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
    """Right-padded token ids, and for each the id that follows it, or `UNSCORED`."""

    ids: Int[Tensor, "b t"]
    targets: Int[Tensor, "b t"]


def encode(example: Example, tokenizer: TokenizerLike, length: int, prompt_tokens: int) -> Tokens:
    """Turn an example into at most `length` ids, the last of them the end unless it was cut.

    Of plain text the first `prompt_tokens` are its prompt, but never more than half. Where prompt and response do not
    both fit, the response keeps half of `length`, or all that the prompt leaves free; the prompt keeps its end, and
    what starts every sequence.
    """
    if not example.prompt:
        text = [*tokenizer.begin(example.response), tokenizer.eos]
        ids = text[:length]
        given = max(1, min(prompt_tokens, len(ids) // 2))
        return Tokens(ids, given, example.group, len(text) > length, example.source)
    asked = example.messages or example.prompt
    try:
        prompt, response = tokenizer.begin(asked), tokenizer.answer(asked, example.response)
    except DataError as error:  # a chat template does not take every conversation
        error.at(path=example.source or None)
        raise
    truncated = len(prompt) + len(response) > length
    response = response[: max(length // 2, length - len(prompt))]
    if truncated:
        start = list(tokenizer.start) if prompt[: len(tokenizer.start)] == list(tokenizer.start) else []
        prompt = start + prompt[len(prompt) + len(response) - length + len(start) :]
    return Tokens(prompt + response, len(prompt), example.group, truncated, example.source)


def encode_all(
    examples: Iterable[Example], tokenizer: TokenizerLike, length: int, prompt_tokens: int
) -> tuple[list[Tokens], int]:
    """Encode every example; also the number of those that were cut."""
    rows = [encode(example, tokenizer, length, prompt_tokens) for example in examples]
    return rows, sum(row.truncated for row in rows)


def pad(rows: list[Tokens], score_prompt: bool = False) -> Batch:
    """Put rows side by side; a row's last id is only ever a target, so the batch is one narrower than its longest."""
    ids = torch.zeros(len(rows), max(len(row.ids) for row in rows) - 1, dtype=torch.long)
    targets = torch.full_like(ids, UNSCORED)
    for i, row in enumerate(rows):
        tokens, first = torch.tensor(row.ids), 1 if score_prompt else row.prompt
        ids[i, : len(tokens) - 1] = tokens[:-1]
        targets[i, first - 1 : len(tokens) - 1] = tokens[first:]
    return Batch(ids, targets)


def by_length(lengths: Sequence[int], batch: int) -> Iterator[list[int]]:
    """The indices of rows of these lengths in batches of like length, shortest first; equal ones keep their order.

    Together the batches hold every index once, so a result that is written to the indices of its batch is in order.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    for start in range(0, len(order), batch):
        yield order[start : start + batch]


@runtime_checkable
class RowLike(Protocol):
    """A row that can be scheduled: what it is as ids, and where it was read."""

    @property
    def ids(self) -> list[int]: ...
    @property
    def source(self) -> str: ...


R = TypeVar("R", bound=RowLike)


class Schedule(Generic[R]):
    """The rows of every training step: each row once an epoch, in batches of similar length.

    One batch of an epoch is smaller where the rows do not divide evenly.
    """

    def __init__(self, rows: list[R], batch: int, seed: int):
        if not rows:
            raise DataError("there are no rows to train on")
        self.rows, self.batch, self.seed = rows, batch, seed
        self.steps = -(-len(rows) // batch)  # of an epoch
        self._epoch = lru_cache(maxsize=1)(self._draw)

    def __call__(self, step: int) -> list[R]:
        epoch, at = divmod(step, self.steps)
        return [self.rows[i] for i in self._epoch(epoch)[at]]

    def names(self, step: int) -> list[str]:
        """Where the rows of a batch were read, in its order."""
        return [row.source for row in self(step)]

    def _draw(self, epoch: int) -> list[list[int]]:
        draw, size = _stream(self.seed, epoch), self.batch * WINDOW
        order = _shuffled(draw, len(self.rows))
        for i in range(0, len(order), size):
            order[i : i + size] = sorted(order[i : i + size], key=lambda row: len(self.rows[row].ids))
        batches = [order[i : i + self.batch] for i in range(0, len(order), self.batch)]
        return [batches[i] for i in _shuffled(draw, len(batches))]


class Packed:
    """The batches of pretraining: all rows end to end, cut into equal pieces, every token scored and no padding.

    A piece's last target is the next one's first input. What does not fill a batch at an epoch's end is left out, so
    with fewer pieces than `batch` all batches are that small; the next epoch leaves out something else.
    """

    def __init__(self, rows: list[Tokens], length: int, batch: int, seed: int):
        self.ids, self.sources = [np.asarray(row.ids, dtype=np.int32) for row in rows], [row.source for row in rows]
        self.length, self.seed = length, seed
        pieces = (sum(len(ids) for ids in self.ids) - 1) // length
        if pieces < 1:
            raise DataError("there is too little text to train on", expected=f"more than {length} tokens")
        self.batch = min(batch, pieces)
        self.steps = pieces // self.batch  # of an epoch
        self._epoch = lru_cache(maxsize=1)(self._draw)

    def __call__(self, step: int) -> Batch:
        epoch, at = divmod(step, self.steps)
        size = self.batch * self.length
        ids = self._epoch(epoch)[at * size : (at + 1) * size + 1].long()
        return Batch(ids[:-1].reshape(self.batch, -1), ids[1:].reshape(self.batch, -1))

    def names(self, step: int) -> list[str]:
        """Where the rows were read of which a batch holds a part, in its order; the last target counts."""
        epoch, at = divmod(step, self.steps)
        order, size = self._order(epoch), self.batch * self.length
        ends = np.cumsum([len(self.ids[i]) for i in order])
        first, last = np.searchsorted(ends, [at * size, (at + 1) * size], side="right").tolist()
        return [self.sources[i] for i in order[first : last + 1]]

    def _order(self, epoch: int) -> list[int]:
        return _shuffled(_stream(self.seed, epoch), len(self.ids))

    def _draw(self, epoch: int) -> Int[Tensor, " n"]:
        order = self._order(epoch)
        return torch.from_numpy(np.concatenate([self.ids[i] for i in order]))


def _shuffled(draw: Philox, n: int) -> list[int]:
    """A permutation of n things: sorts raw draws, which numpy keeps the same over its versions, unlike shuffles."""
    return draw.random_raw(n).argsort(kind="stable").tolist()


def _stream(seed: int, epoch: int) -> Philox:
    return Philox(SeedSequence(seed, spawn_key=(epoch,)))
