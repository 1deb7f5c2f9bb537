"""A domain's rows in three disjoint splits: train, validation and test.

Knows nothing about tokens. Picks rows by content hash, so that the order of rows and files does not matter, except that
a `limit` reads the first rows of a file.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

from moesaic.data import demo
from moesaic.data.labelled import labels_of, place_of, read_labelled
from moesaic.data.rejects import Rejects
from moesaic.data.rows import Example, examples_of, streamed_rows
from moesaic.data.stored_rows import InMemory, Shelf, groups_of, on_disk, without
from moesaic.errors import DataError, nearest
from moesaic.files.plain import digest_of_lists
from moesaic.sections.sources import Data, DemoData, FileData, LabelledData, Source, Sources

SPLITS = ("train", "validation", "test")

Groups = dict[str, Any]
"""Hash of a row -> what its shelf finds it by."""

Reader = Callable[[Source], Iterable[list[Example]]]
Resolve = Callable[[str], Path]


@dataclass(frozen=True)
class Given:
    """A domain's rows by split, before splits are made disjoint; `dropped` counts dropped rows by reason.

    `files`: files by split, for messages. `labels`: all labels, for rows with labels. `read`: see Domain.
    """

    rows: dict[str, Groups]
    dropped: dict[str, int]
    files: dict[str, str]
    labels: tuple[str, ...] = ()
    read: dict[str, list[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Domain:
    """A domain's examples, sorted by the hash of their row; `dropped` counts dropped rows by reason.

    `labels`: all labels in their order, for rows with labels. `read`: the number of different rows in each file, by the
    key that names the files: a `limit` of that number reads the same rows again. `known`: the digest, if it is known.
    """

    name: str
    train: Sequence[Example]
    validation: Sequence[Example]
    test: Sequence[Example]
    dropped: dict[str, int]
    labels: tuple[str, ...] = ()
    read: dict[str, list[int]] = field(default_factory=dict, compare=False)
    known: str | None = field(default=None, compare=False)

    @cached_property
    def digest(self) -> str:
        """Hash of the content of train and validation, independent of names of the domain and its files."""
        return self.known or digest_of_lists((row.told for row in some) for some in (self.train, self.validation))

    def without(self, judged: set[str]) -> "Domain":
        """Drop training rows whose group is in `judged`, which are test rows of another domain."""
        kept = without(self.train, judged)
        lost = len({*groups_of(self.train)}) - len({*groups_of(kept)}) if len(kept) < len(self.train) else 0
        if not lost:
            return self
        dropped = {**self.dropped, "train: in another domain's test": lost}
        return replace(self, train=kept, dropped=dropped, known=None)


def load_domain(
    name: str, data: Data, resolve: Resolve, rejects: Rejects | None = None, shelf: Shelf[Any] | None = None
) -> Domain:
    """Read a domain's rows and make its splits disjoint: shared rows stay in test, otherwise in validation.

    `resolve` finds the file of a source; unusable rows go to `rejects`, the others to `shelf` (default: in memory).
    """
    shelf = shelf or InMemory()
    given = READERS[type(data)](data, resolve, rejects, shelf)
    read, dropped = dict(given.rows), dict(given.dropped)
    for split, other in (("validation", "test"), ("train", "test"), ("train", "validation")):
        dropped[f"{split}: also in {other}"] = len(read[split].keys() & read[other].keys())
        read[split] = _without(read[split], read[other])
    dropped = {why: rows for why, rows in dropped.items() if rows}
    for split in SPLITS:
        if not read[split]:
            what = f"domain '{name}' has no rows left for {split}"
            hint = "add other rows, or name a file for validation"
            got = ", ".join(f"{why}: {rows} rows" for why, rows in dropped.items()) or None
            raise DataError(what, path=given.files[split], field=split, got=got, hint=hint)
    train, validation, test = (shelf.sorted(read[split]) for split in SPLITS)
    return Domain(name, train, validation, test, dropped, given.labels, given.read)


def load_source(
    sources: Iterable[Source], resolve: Resolve, rejects: Rejects | None = None, shelf: Shelf[Any] | None = None
) -> Sequence[Example]:
    """Read text outside of domains, each row once."""
    shelf = shelf or InMemory()

    def rows(source: Source) -> Iterator[list[Example]]:
        return streamed_rows(resolve(source.path), rejects, source.limit, source.every)

    return shelf.sorted(_read(sources, rows, shelf)[0])


def load_unseen(
    given: DemoData | Sources, resolve: Resolve, rejects: Rejects | None = None, shelf: Shelf[Any] | None = None
) -> Sequence[Example]:
    """Read text that no expert is trained for: files, or the test rows of a built-in domain."""
    return UNSEEN_READERS[type(given)](given, resolve, rejects, shelf or InMemory())


def take(examples: Sequence[Example], n: int) -> list[Example]:
    """Pick n examples by hash: independent of the order of rows, and a subset of every larger pick."""
    chosen = chosen_of(examples, n)
    rows = on_disk(examples)
    return [examples[at] for at in chosen] if rows is None else [*rows.at(chosen)]


def chosen_of(examples: Sequence[Example], n: int) -> list[int]:
    """The positions of the examples that `take` picks, in its order."""
    seen: dict[str, Iterator[int]] = defaultdict(count)
    drawn = [_hash(f"{group} {next(seen[group])}") for group in groups_of(examples)]
    return sorted(range(len(drawn)), key=drawn.__getitem__)[:n]


def _demo(data: DemoData, resolve: Resolve, rejects: Rejects | None, shelf: Shelf[Any]) -> Given:
    read, dropped = {}, {}
    for split in SPLITS:
        rows = enumerate(demo.rows(data.demo, split), 1)
        given = (examples_of(row, f"demo {data.demo} {split}", number) for number, row in rows)
        read[split], dropped[f"{split}: repeated"] = _grouped(given, shelf)
    return Given(read, dropped, dict.fromkeys(SPLITS, f"demo {data.demo}"))


def _texts(data: FileData, resolve: Resolve, rejects: Rejects | None, shelf: Shelf[Any]) -> Given:
    def path_of(source: Source) -> Path:
        return resolve(source.path)

    def rows_of(source: Source) -> Iterator[list[Example]]:
        return streamed_rows(path_of(source), rejects, source.limit, source.every)

    rows, dropped, read = _split(data, rows_of, shelf)
    return Given(rows, dropped, _files(data, path_of), read=read)


def _labelled(data: LabelledData, resolve: Resolve, rejects: Rejects | None, shelf: Shelf[Any]) -> Given:
    labels, collected = labels_of(data, resolve, rejects), rejects or Rejects()
    if data.positive and data.positive not in labels.names:
        hint, at = nearest(data.positive, [*labels.names]), resolve(data.train[0].path)
        expected = f"one of {', '.join(labels.names)}"
        raise DataError("unknown label", path=at, field="positive", expected=expected, got=data.positive, hint=hint)
    rows, dropped, read = _split(data, lambda source: read_labelled(source, data, labels, resolve, collected), shelf)
    return Given(rows, dropped, _files(data, lambda source: place_of(source, data, resolve)), labels.names, read)


READERS: dict[type[Data], Callable[[Any, Resolve, Rejects | None, Shelf[Any]], Given]] = {
    DemoData: _demo,
    FileData: _texts,
    LabelledData: _labelled,
}
"""Section of a domain's data -> its reader."""

SOURCES: dict[type, Callable[[Any], list[Source]]] = {
    DemoData: lambda data: [],
    FileData: lambda data: _sources(data),
    LabelledData: lambda data: _sources(data),
    list: lambda sources: sources,
}
"""What names rows -> its files and splits of the hub."""

UNSEEN_READERS: dict[type, Callable[[Any, Resolve, Rejects | None, Shelf[Any]], Sequence[Example]]] = {
    DemoData: lambda data, resolve, rejects, shelf: shelf.sorted(_demo(data, resolve, rejects, shelf).rows["test"]),
    list: load_source,
}
"""What names text outside the domains -> its reader."""


def _split(
    data: FileData | LabelledData, reader: Reader, shelf: Shelf[Any]
) -> tuple[dict[str, Groups], dict[str, int], dict[str, list[int]]]:
    read, dropped, sizes, share = {}, {}, {}, data.validation
    given = {"train": data.train, "test": data.test} | ({} if isinstance(share, float) else {"validation": share})
    for split, sources in given.items():
        read[split], dropped[f"{split}: repeated"], sizes[split] = _read(sources, reader, shelf)
    if isinstance(share, float):
        chosen = carved(_without(read["train"], read["test"]), share)
        read["validation"] = {group: row for group, row in read["train"].items() if group in chosen}
        read["train"] = _without(read["train"], read["validation"])
    return read, dropped, sizes


def carved(groups: Iterable[str], share: float) -> set[str]:
    """Pick a share of rows by their hash: at least one, and never all, where there are two rows or more.

    Not by the group itself, whose order is that of the rows in a split.
    """
    drawn = sorted((_hash(f"validation {group}"), group) for group in groups)
    count = sum(number < share for number, _ in drawn)
    count = min(max(count, 1), len(drawn) - 1) if len(drawn) > 1 else count
    return {group for _, group in drawn[:count]}


def _read(sources: Iterable[Source], reader: Reader, shelf: Shelf[Any]) -> tuple[Groups, int, list[int]]:
    groups: Groups = {}
    repeated, sizes = 0, list[int]()
    for source in sources:
        own, again = _grouped(reader(source), shelf)
        sizes.append(len(own))
        repeated += again + len(own.keys() & groups.keys())
        groups |= own
    return groups, repeated, sizes


def _grouped(rows: Iterable[list[Example]], shelf: Shelf[Any]) -> tuple[Groups, int]:
    groups: Groups = {}
    repeated = 0
    for row in rows:
        repeated += row[0].group in groups
        groups[row[0].group] = shelf.add(row)
    return groups, repeated


def _without(groups: Groups, others: Mapping[str, Any]) -> Groups:
    return {group: row for group, row in groups.items() if group not in others}


def _sources(data: FileData | LabelledData) -> list[Source]:
    return [*data.train, *([] if isinstance(data.validation, float) else data.validation), *data.test]


def _files(data: FileData | LabelledData, path_of: Callable[[Source], Path]) -> dict[str, str]:
    validation = data.train if isinstance(data.validation, float) else data.validation
    sources = dict(zip(SPLITS, (data.train, validation, data.test), strict=True))
    return {split: ", ".join(str(path_of(source)) for source in some) for split, some in sources.items()}


def _hash(text: str) -> float:
    """Number in [0, 1) that depends only on the text."""
    return int(sha256(text.encode()).hexdigest()[:13], 16) / 16**13
