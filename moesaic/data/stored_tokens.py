"""Rows as token ids in mapped files: encoded once, read by every process of a run.

The files are those of a stream of token shards, with more numbers of each row. Knows nothing about models or batches.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from moesaic.data.batches import Tokens, encode_all
from moesaic.data.cuts import Counted
from moesaic.data.rows import Example
from moesaic.data.stored_rows import StoredRows
from moesaic.data.token_shards import END, HASH, Side, Stream, file_name, kind_of, mapped
from moesaic.tokenizer import Tokenizer

NAME = "rows"
TOGETHER = 2000
"""Examples that are encoded together."""
TOKENS_PER_FILE = 1 << 22
COLUMNS: dict[str, np.dtype[Any]] = {
    "hashes": HASH,
    "prompts": np.dtype("<i4"),
    "lost": np.dtype("<i4"),
    "cut": np.dtype("u1"),
}
"""Numbers of each row -> their type in their files."""


class StoredTokens(Counted, Sequence[Tokens]):
    """The rows of a folder that `encode_into` filled with the given examples."""

    def __init__(self, folder: Path, facts: dict[str, Any], examples: StoredRows):
        files, kind = range(facts["files"]), np.dtype(facts["dtype"])

        def of(column: str, kind: np.dtype[Any]) -> list[NDArray[Any]]:
            return [mapped(folder / file_name(NAME, file, column), kind) for file in files]

        self._stream = Stream(NAME, of("tokens", kind), of("ends", END), of("hashes", HASH))
        self.prompts, self.cut = (np.concatenate(of(one, COLUMNS[one])) for one in ("prompts", "cut"))
        self._lost = np.concatenate(of("lost", COLUMNS["lost"])).astype(np.int64)
        self._examples = examples

    @property
    def lengths(self) -> NDArray[np.int64]:
        return self._stream.lengths

    @property
    def lost(self) -> NDArray[np.int64]:
        return self._lost

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, at: int) -> Tokens: ...
    @overload
    def __getitem__(self, at: slice) -> list[Tokens]: ...
    def __getitem__(self, at: int | slice) -> Tokens | list[Tokens]:
        if isinstance(at, slice):
            return [self[one] for one in range(*at.indices(len(self)))]
        at = range(len(self))[at]
        ids, group = self._stream.ids(at).tolist(), f"{int(self._stream.hashes[at]):016x}"
        source = self._examples[at].source
        return Tokens(ids, int(self.prompts[at]), group, int(self.lost[at]), source, bool(self.cut[at]))


def encode_into(
    folder: Path,
    examples: StoredRows,
    tokenizer: Tokenizer,
    length: int,
    prompt_tokens: int,
    watch: Callable[[Sequence[Example]], Iterable[Example]] = iter,
) -> dict[str, Any]:
    """Fill an empty folder with the rows of examples, and return the facts by which StoredTokens reads it.

    The other arguments are those of `encode_all`; only some rows are in memory at a time.
    """
    kind = kind_of(tokenizer)
    side = Side(folder, NAME, kind, TOKENS_PER_FILE, COLUMNS)
    for some in together(watch(examples)):
        for row in encode_all(some, tokenizer, length, prompt_tokens)[0]:
            side.add(row.ids, hashes=int(row.group, 16), prompts=row.prompt, lost=row.lost, cut=row.cut)
    return {"dtype": kind.str, **side.finish()}


def together(examples: Iterable[Example]) -> Iterator[list[Example]]:
    """Examples in lists; those of one row are in one list, as they share their tokens."""
    some = list[Example]()
    for example in examples:
        if len(some) >= TOGETHER and example.group != some[-1].group:
            yield some
            some = []
        some.append(example)
    if some:
        yield some
