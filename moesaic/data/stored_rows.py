"""Rows in a file of their own: written while they are read for the first time, and decoded when they are asked for.

Only an index of the rows is in memory, and every process of a run reads the same file. Knows nothing about splits,
tokens or the formats of files of rows.
"""

import json
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, singledispatch
from pathlib import Path
from typing import Any, Protocol, TypeVar, overload, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from moesaic.data.rows import Example
from moesaic.files import digest, disk
from moesaic.files.plain import digest_of_list
from moesaic.tokenizer.conversation import Message, plain_at

ROWS = "rows.bin"
INDEX_OF = "index.bin"
INDEX = np.dtype([("group", "<u8"), ("begin", "<i8"), ("size", "<i4"), ("examples", "<i4")])
"""A row in its file: its hash, its bytes, and the number of its examples."""
TOGETHER = 1 << 20
"""Bytes that are written at once."""
BLOCK = 4096
"""Entries of the index that are plain Python values at once."""

Kept = TypeVar("Kept")


@runtime_checkable
class Shelf(Protocol[Kept]):
    """Where rows are put while files are read."""

    def add(self, row: list[Example]) -> Kept:
        """Put a row, and return what finds it again."""

    def sorted(self, groups: Mapping[str, Kept]) -> Sequence[Example]:
        """The examples of some rows, in the order of their hashes."""


class InMemory:
    """Rows in memory, for few of them."""

    def add(self, row: list[Example]) -> list[Example]:
        return row

    def sorted(self, groups: Mapping[str, list[Example]]) -> list[Example]:
        return [example for group in sorted(groups) for example in groups[group]]


class RowFile:
    """A new file of rows."""

    def __init__(self, path: Path):
        self.path, self._file = path, disk.begin(path)
        self._waiting, self._end = bytearray(), 0
        self._groups, self._begins, self._sizes, self._examples = array("Q"), array("q"), array("i"), array("i")

    def __enter__(self) -> "RowFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, row: list[Example]) -> int:
        data = packed(row)
        self._groups.append(int(row[0].group, 16))
        self._begins.append(self._end)
        self._sizes.append(len(data))
        self._examples.append(len(row))
        self._end += len(data)
        self._waiting += data
        if len(self._waiting) >= TOGETHER:
            self._flush()
        return len(self._begins) - 1

    def sorted(self, groups: Mapping[str, int]) -> "StoredRows":
        """The rows at these positions, in the order of their hashes."""
        self._flush()
        chosen = np.array([groups[group] for group in sorted(groups)], np.int64)
        table = np.empty(len(chosen), INDEX)
        columns = {"group": self._groups, "begin": self._begins, "size": self._sizes, "examples": self._examples}
        for name, values in columns.items():
            table[name] = np.frombuffer(values, values.typecode)[chosen] if len(chosen) else 0
        return StoredRows(self.path, table)

    def _flush(self) -> None:
        disk.write(self._file, bytes(self._waiting))
        self._waiting = bytearray()


@dataclass(frozen=True, eq=False)
class StoredRows(Sequence[Example]):
    """The examples of rows in a file. `name`: tells their content and order from others'; empty before it is known."""

    path: Path
    table: NDArray[Any]
    name: str = ""

    @staticmethod
    def open(folder: Path, name: str) -> "StoredRows":
        """The rows of a name in a folder that `store` filled."""
        at = folder / f"{name}.{INDEX_OF}"
        with disk.errors(at):
            return StoredRows(folder / ROWS, np.memmap(at, INDEX, "r"), f"{folder.name}/{name}")

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        """The number of examples up to the end of each row."""
        return np.cumsum(self.table["examples"], dtype=np.int64)

    @property
    def groups(self) -> Iterator[str]:
        """The hash of the row of every example."""
        for some in _blocks(self.table[["group", "examples"]]):
            for group, examples in some:
                for _ in range(examples):
                    yield f"{group:016x}"

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @overload
    def __getitem__(self, at: int) -> Example: ...
    @overload
    def __getitem__(self, at: slice) -> list[Example]: ...
    def __getitem__(self, at: int | slice) -> Example | list[Example]:
        if isinstance(at, slice):
            return [*self.at(range(*at.indices(len(self))))]
        (found,) = self.at([range(len(self))[at]])
        return found

    def __iter__(self) -> Iterator[Example]:
        for row in self.rows():
            yield from row

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Iterable) and [*self] == [*other]

    __hash__ = None  # type: ignore[assignment]

    def rows(self) -> Iterator[list[Example]]:
        """The rows, each as its examples."""
        with disk.errors(self.path), self.path.open("rb", buffering=0) as file:
            for some in _blocks(self.table):
                for group, begin, size, _ in some:
                    file.seek(begin)
                    yield unpacked(file.read(size), f"{group:016x}")

    def at(self, chosen: Iterable[int]) -> Iterator[Example]:
        """The examples at these positions."""
        with disk.errors(self.path), self.path.open("rb", buffering=0) as file:
            for one in chosen:
                row = int(np.searchsorted(self._ends, one, side="right"))
                group, begin, size, examples = self.table[row].tolist()
                file.seek(begin)
                yield unpacked(file.read(size), f"{group:016x}")[one - int(self._ends[row]) + examples]

    def without(self, groups: Collection[str]) -> "StoredRows":
        """The same rows but for those of these groups."""
        dropped = np.array(sorted(int(group, 16) for group in groups), np.uint64)
        kept = self.table[~np.isin(self.table["group"], dropped)]
        if len(kept) == len(self.table):
            return self
        lost = [f"{group:016x}" for group in np.intersect1d(self.table["group"], dropped).tolist()]
        return StoredRows(self.path, kept, digest([self.name, lost]) if self.name else "")


def store(folder: Path, named: Mapping[str, Sequence[Example]]) -> None:
    """Write the index of rows of one file, by their name, beside the file."""
    for name, examples in named.items():
        rows = on_disk(examples)
        assert rows is not None
        disk.create(folder / f"{name}.{INDEX_OF}", rows.table.tobytes())


def groups_of(examples: Iterable[Example]) -> Iterator[str]:
    """The hash of the row of every example; those of stored rows are in their index."""
    rows = on_disk(examples)
    return (example.group for example in examples) if rows is None else rows.groups


def without(examples: Sequence[Example], groups: Collection[str]) -> Sequence[Example]:
    """The same examples but for those of these groups."""
    rows = on_disk(examples)
    return [one for one in examples if one.group not in groups] if rows is None else rows.without(groups)


def name_of(examples: Sequence[Example]) -> str:
    """A name that tells the content and the order of examples from others'."""
    rows = on_disk(examples)
    return digest_of_list(one.told for one in examples) if rows is None else rows.name


@singledispatch
def on_disk(examples: Iterable[Example]) -> StoredRows | None:
    """Examples that are rows of a file; None for those in memory."""
    return None


@on_disk.register
def _(examples: StoredRows) -> StoredRows:
    return examples


def _blocks(table: NDArray[Any]) -> Iterator[list[Any]]:
    return (table[start : start + BLOCK].tolist() for start in range(0, len(table), BLOCK))


def packed(row: Sequence[Example]) -> bytes:
    """A row as bytes. The answers of one conversation share its messages."""
    first, last = row[0], row[-1]
    if first.messages:
        turns = (*last.messages, Message("assistant", last.response))
        body: list[Any] = [turns, [len(example.messages) for example in row]]
    else:
        body = [[(example.prompt, example.response, example.texts) for example in row]]
    value = [first.source, first.correct, first.incorrect, *body]
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def unpacked(data: bytes, group: str) -> list[Example]:
    """The examples of a row that `packed` wrote."""
    source, correct, incorrect, *body = json.loads(data)
    beside = {"correct": tuple(correct), "incorrect": tuple(incorrect)}
    if len(body) == 1:
        return [
            Example(prompt, response, group, source, (), tuple(texts), **beside) for prompt, response, texts in body[0]
        ]
    turns = tuple(Message(role, content) for role, content in body[0])
    prompts = zip(body[1], plain_at(turns, body[1]), strict=True)
    return [Example(text, turns[at].content, group, source, turns[:at], **beside) for at, text in prompts]
