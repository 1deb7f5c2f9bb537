"""Texts as token ids in files of a fixed size, mapped into memory, beside the tokenizer that made them.

A text that occurs twice is kept once; a share of the texts, chosen by the hash of each, is kept apart as unseen.
Knows nothing about models or batches.
"""

import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesaic.data.batches import Tokens, encode_all
from moesaic.data.rows import Example
from moesaic.errors import DataError, WeightsError
from moesaic.files import digest, disk, plain, read_manifest, write_manifest
from moesaic.tokenizer import Tokenizer
from moesaic.tokenizer.special import GENERATION

KIND = "tokens"
TOKENS_PER_FILE = 1 << 26
ENCODED_TOGETHER = 1000
NARROW = 1 << 16
"""Vocabularies up to this size take two bytes a token, others four."""
END = np.dtype("<i8")
"""The type of the position, in its file, behind the last token of each text."""
HASH = np.dtype("<u8")
"""The type of the hash of a text, which is the group of its example."""


class Stream:
    """Texts in files of tokens, counted over all files: the Documents of `Packed`. `hashes`: of their groups."""

    def __init__(
        self,
        name: str,
        tokens: Sequence[NDArray[Any]],
        ends: Sequence[NDArray[np.int64]],
        hashes: Sequence[NDArray[np.uint64]],
    ):
        self.name, self._tokens, self._ends = name, tokens, ends
        self.hashes = np.concatenate([np.empty(0, HASH), *hashes])
        self.lengths = np.concatenate([np.empty(0, END), *(np.diff(some, prepend=0) for some in ends)])
        self._first = np.cumsum([0, *(len(some) for some in ends)])  # text of each file
        self._kept = np.arange(len(self.lengths))

    def without(self, groups: Collection[str]) -> "Stream":
        """The same texts but for those of these groups."""
        left = copy(self)
        keep = ~np.isin(self.hashes, np.array([int(group, 16) for group in groups], HASH))
        left.lengths, left.hashes, left._kept = self.lengths[keep], self.hashes[keep], self._kept[keep]
        return left

    def ids(self, index: int) -> NDArray[Any]:
        file, place = self._home(index)
        end = int(self._ends[file][place])
        return self._tokens[file][end - int(self.lengths[index]) : end]

    def source(self, index: int) -> str:
        file, place = self._home(index)
        return f"{file_name(self.name, file)}, text {place + 1}"

    def rows(self, most: int, length: int) -> list[Tokens]:
        """The first texts, cut to a length, as rows whose every token but the first is scored."""
        cut = [self.ids(index)[:length].tolist() for index in range(min(most, len(self.lengths)))]
        return [Tokens(ids, 1, str(index), source=self.source(index)) for index, ids in enumerate(cut)]

    def _home(self, index: int) -> tuple[int, int]:
        at = int(self._kept[index])
        file = int(np.searchsorted(self._first, at, side="right")) - 1
        return file, at - int(self._first[file])


@dataclass(frozen=True)
class Shards:
    """A folder of shards: texts to train on, texts to judge by, and their tokenizer. `key`: a hash of all of them."""

    train: Stream
    unseen: Stream
    tokenizer: Tokenizer
    key: str

    @staticmethod
    def open(folder: Path) -> "Shards":
        """Map a folder that `write_shards` filled; WeightsError where a file is damaged."""
        manifest = read_manifest(folder, KIND)
        kind, size = np.dtype(manifest["dtype"]), manifest["vocab_size"]

        def stream(name: str) -> Stream:
            files = range(manifest[name]["files"])
            tokens = [mapped(folder / file_name(name, file), kind) for file in files]
            ends = [mapped(folder / file_name(name, file, "ends"), END) for file in files]
            hashes = [mapped(folder / file_name(name, file, "hashes"), HASH) for file in files]
            for file, some, places, groups in zip(files, tokens, ends, hashes, strict=True):
                at = folder / file_name(name, file)
                if places[-1] != len(some) or len(groups) != len(places) or (np.diff(places, prepend=0) < 2).any():
                    raise WeightsError("texts and tokens do not agree", path=at, hint="write the folder anew")
                if some.max() >= size:
                    raise WeightsError("no token of the vocabulary", path=at, expected=f"< {size}", got=some.max())
            return Stream(name, tokens, ends, hashes)

        train, unseen = stream("train"), stream("unseen")
        return Shards(train, unseen, Tokenizer.load(folder), digest(manifest["files"]))


def mapped(path: Path, kind: np.dtype[Any]) -> NDArray[Any]:
    with disk.errors(path):
        return np.memmap(path, kind, "r")


def file_name(stream: str, file: int, of: str = "tokens") -> str:
    return f"{stream}-{file:05d}.{of}.bin"


def write_shards(
    folder: Path,
    examples: Iterable[Example],
    tokenizer: Tokenizer,
    unseen: float,
    tokens_per_file: int = TOKENS_PER_FILE,
) -> dict[str, Any]:
    """Fill an empty folder with the texts of examples, each once, and return the facts of its manifest.

    `unseen`: the share of the texts to keep apart. A file ends with the text that reaches `tokens_per_file`.
    DataError without any text to train on.
    """
    kind = kind_of(tokenizer)
    sides = {name: Side(folder, name, kind, tokens_per_file) for name in ("train", "unseen")}
    seen, repeated = set[int](), 0
    for example, ids in encoded(examples, tokenizer):
        number = int(example.group, 16)
        if number in seen:
            repeated += 1
            continue
        seen.add(number)
        sides["unseen" if is_unseen(example, unseen) else "train"].add(ids, hashes=number)
    counts = {name: side.finish() for name, side in sides.items()}
    if not counts["train"]["texts"]:
        raise DataError("no text to train on", expected="at least one text that is not kept apart as unseen")
    tokenizer.save(folder)
    if not (folder / GENERATION).is_file():
        disk.create(folder / GENERATION, plain.encoded({"eos_token_id": tokenizer.eos}, indent=2))
    facts = {"dtype": kind.str, "vocab_size": tokenizer.vocab_size, "unseen_share": unseen, "repeated": repeated}
    write_manifest(folder, {"kind": KIND, **facts, **counts})
    return {**facts, **counts}


def kind_of(tokenizer: Tokenizer) -> np.dtype[Any]:
    """The type of a token in its file."""
    return np.dtype("<u2" if tokenizer.vocab_size <= NARROW else "<u4")


def is_unseen(example: Example, share: float) -> bool:
    """Whether the hash of an example is in a share of all hashes, which are kept apart as unseen."""
    return int(example.group, 16) < share * 2.0**64


def encoded(examples: Iterable[Example], tokenizer: Tokenizer) -> Iterator[tuple[Example, list[int]]]:
    """Each example with all its tokens, end included; only some examples are in memory at a time."""
    left = iter(examples)
    while some := list(islice(left, ENCODED_TOGETHER)):
        rows, _ = encode_all(some, tokenizer, sys.maxsize, 1)
        yield from zip(some, (row.ids for row in rows), strict=True)


class Side:
    """The files of one stream while they are written: at most one is in memory. `columns`: numbers of every text."""

    def __init__(
        self,
        folder: Path,
        name: str,
        kind: np.dtype[Any],
        tokens_per_file: int,
        columns: Mapping[str, np.dtype[Any]] = {"hashes": HASH},
    ):
        self.folder, self.name, self.kind, self.most, self.columns = folder, name, kind, tokens_per_file, columns
        self.texts = self.tokens = self.files = self.size = 0
        self.held: list[NDArray[Any]] = []
        self.values: dict[str, list[int]] = {column: [] for column in columns}

    def add(self, ids: list[int], **values: int) -> None:
        self.held.append(np.array(ids, self.kind))
        for column, value in values.items():
            self.values[column].append(value)
        self.size += len(ids)
        if self.size >= self.most:
            self.flush()

    def flush(self) -> None:
        """Write the texts in memory as one file."""
        ends = np.cumsum([len(ids) for ids in self.held]).astype(END)
        parts = {"tokens": np.concatenate(self.held), "ends": ends}
        parts |= {column: np.array(self.values[column], kind) for column, kind in self.columns.items()}
        for of, values in parts.items():
            disk.create(self.folder / file_name(self.name, self.files, of), values.tobytes())
        self.texts, self.tokens, self.files = self.texts + len(self.held), self.tokens + self.size, self.files + 1
        self.held, self.values, self.size = [], {column: [] for column in self.columns}, 0

    def finish(self) -> dict[str, int]:
        if self.held:
            self.flush()
        return {"texts": self.texts, "tokens": self.tokens, "files": self.files}
