"""A domain's rows in three disjoint splits: train, validation and test.

Knows nothing about tokens. Picks rows by content hash, so that the order of rows and files does not matter, except that
a `limit` reads the first rows of a file.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from itertools import count
from operator import itemgetter
from pathlib import Path
from typing import Any

from moesaic.data import demo
from moesaic.data.labelled import labels_of, place_of, read_labelled
from moesaic.data.rejects import Rejects
from moesaic.data.rows import Example, examples_of, read_rows
from moesaic.errors import DataError, nearest
from moesaic.files import digest
from moesaic.sections.sources import Data, DemoData, FileData, LabelledData, Source, Sources

SPLITS = ("train", "validation", "test")

Groups = dict[str, list[Example]]
"""Hash of a row -> its examples."""

Reader = Callable[[Source], list[list[Example]]]
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
    key that names the files: a `limit` of that number reads the same rows again.
    """

    name: str
    train: list[Example]
    validation: list[Example]
    test: list[Example]
    dropped: dict[str, int]
    labels: tuple[str, ...] = ()
    read: dict[str, list[int]] = field(default_factory=dict, compare=False)

    @cached_property
    def digest(self) -> str:
        """Hash of the content of train and validation, independent of names of the domain and its files."""
        return digest([[row.told for row in some] for some in (self.train, self.validation)])

    def without(self, judged: set[str]) -> "Domain":
        """Drop training rows whose group is in `judged`, which are test rows of another domain."""
        kept = [row for row in self.train if row.group not in judged]
        lost = {row.group for row in self.train} - {row.group for row in kept}
        dropped = {**self.dropped, "train: in another domain's test": len(lost)} if lost else self.dropped
        return replace(self, train=kept, dropped=dropped)


def load_domain(name: str, data: Data, resolve: Resolve, rejects: Rejects | None = None) -> Domain:
    """Read a domain's rows and make its splits disjoint: shared rows stay in test, otherwise in validation.

    `resolve` finds the file of a source; unusable rows go to `rejects`.
    """
    given = READERS[type(data)](data, resolve, rejects)
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
    train, validation, test = (_flat(read[split]) for split in SPLITS)
    return Domain(name, train, validation, test, dropped, given.labels, given.read)


def load_source(sources: Iterable[Source], resolve: Resolve, rejects: Rejects | None = None) -> list[Example]:
    """Read text outside of domains, each row once."""
    return _flat(_read(sources, lambda source: read_rows(resolve(source.path), rejects, source.limit, source.every))[0])


def load_unseen(given: DemoData | Sources, resolve: Resolve, rejects: Rejects | None = None) -> list[Example]:
    """Read text that no expert is trained for: files, or the test rows of a built-in domain."""
    return UNSEEN_READERS[type(given)](given, resolve, rejects)


def take(examples: Iterable[Example], n: int) -> list[Example]:
    """Pick n examples by hash: independent of the order of rows, and a subset of every larger pick."""
    seen: dict[str, Iterator[int]] = defaultdict(count)
    keyed = [(_hash(f"{example.group} {next(seen[example.group])}"), example) for example in examples]
    return [example for _, example in sorted(keyed, key=itemgetter(0))[:n]]


def _demo(data: DemoData, resolve: Resolve, rejects: Rejects | None) -> Given:
    read, dropped = {}, {}
    for split in SPLITS:
        rows = enumerate(demo.rows(data.demo, split), 1)
        given = (examples_of(row, f"demo {data.demo} {split}", number) for number, row in rows)
        read[split], dropped[f"{split}: repeated"] = _grouped(given)
    return Given(read, dropped, dict.fromkeys(SPLITS, f"demo {data.demo}"))


def _texts(data: FileData, resolve: Resolve, rejects: Rejects | None) -> Given:
    def path_of(source: Source) -> Path:
        return resolve(source.path)

    rows, dropped, read = _split(data, lambda source: read_rows(path_of(source), rejects, source.limit, source.every))
    return Given(rows, dropped, _files(data, path_of), read=read)


def _labelled(data: LabelledData, resolve: Resolve, rejects: Rejects | None) -> Given:
    labels, collected = labels_of(data, resolve, rejects), rejects or Rejects()
    if data.positive and data.positive not in labels.names:
        hint, at = nearest(data.positive, [*labels.names]), resolve(data.train[0].path)
        expected = f"one of {', '.join(labels.names)}"
        raise DataError("unknown label", path=at, field="positive", expected=expected, got=data.positive, hint=hint)
    rows, dropped, read = _split(data, lambda source: read_labelled(source, data, labels, resolve, collected))
    return Given(rows, dropped, _files(data, lambda source: place_of(source, data, resolve)), labels.names, read)


READERS: dict[type[Data], Callable[[Any, Resolve, Rejects | None], Given]] = {
    DemoData: _demo,
    FileData: _texts,
    LabelledData: _labelled,
}
"""Section of a domain's data -> its reader."""

UNSEEN_READERS: dict[type, Callable[[Any, Resolve, Rejects | None], list[Example]]] = {
    DemoData: lambda data, resolve, rejects: _flat(_demo(data, resolve, rejects).rows["test"]),
    list: load_source,
}
"""What names text outside the domains -> its reader."""


def _split(
    data: FileData | LabelledData, reader: Reader
) -> tuple[dict[str, Groups], dict[str, int], dict[str, list[int]]]:
    read, dropped, sizes, share = {}, {}, {}, data.validation
    given = {"train": data.train, "test": data.test} | ({} if isinstance(share, float) else {"validation": share})
    for split, sources in given.items():
        read[split], dropped[f"{split}: repeated"], sizes[split] = _read(sources, reader)
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


def _read(sources: Iterable[Source], reader: Reader) -> tuple[Groups, int, list[int]]:
    groups: Groups = {}
    repeated, sizes = 0, list[int]()
    for source in sources:
        own, again = _grouped(reader(source))
        sizes.append(len(own))
        repeated += again + len(own.keys() & groups.keys())
        groups |= own
    return groups, repeated, sizes


def _grouped(rows: Iterable[list[Example]]) -> tuple[Groups, int]:
    groups: Groups = {}
    repeated = 0
    for row in rows:
        repeated += row[0].group in groups
        groups[row[0].group] = row
    return groups, repeated


def _without(groups: Groups, others: Groups) -> Groups:
    return {group: row for group, row in groups.items() if group not in others}


def _flat(groups: Groups) -> list[Example]:
    return [example for group in sorted(groups) for example in groups[group]]


def _files(data: FileData | LabelledData, path_of: Callable[[Source], Path]) -> dict[str, str]:
    validation = data.train if isinstance(data.validation, float) else data.validation
    sources = dict(zip(SPLITS, (data.train, validation, data.test), strict=True))
    return {split: ", ".join(str(path_of(source)) for source in some) for split, some in sources.items()}


def _hash(text: str) -> float:
    """Number in [0, 1) that depends only on the text."""
    return int(sha256(text.encode()).hexdigest()[:13], 16) / 16**13
