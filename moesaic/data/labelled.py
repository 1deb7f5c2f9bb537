"""Rows with labels, from files of every format and from data sets of the hub.

Knows nothing about splits, tokens or models. An example's response is the name of its label.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from hashlib import sha256
from os.path import basename
from pathlib import Path
from typing import Any

from moesaic.data.containers import EXTRA, Columns, numbered, rows_of
from moesaic.data.rejects import Rejects
from moesaic.data.rows import Example, text_at, usable
from moesaic.errors import DataError, nearest
from moesaic.sections.glue import HUB as GLUE
from moesaic.sections.sources import HUB, LabelledData, Source

Row = Mapping[str, Any]
UNLABELLED = "GLUE does not publish labels of test rows: evaluate on rows of the validation split"


class Labels:
    """Names of a task's labels, and how rows spell them: as a name, or as the index of a given name.

    An integer in rows that define the names (`found`) is a name itself.
    """

    def __init__(self, names: tuple[str, ...], found: bool = False):
        self.names = names
        self.table: dict[str, str] = {} if found else {str(index): name for index, name in enumerate(names)}
        self.table |= {name: name for name in names}

    def name_of(self, value: Any, field: str) -> str:
        name = self.table.get(raw_label(value, field))
        if name is None:
            hint = UNLABELLED if value in (-1, "-1") else nearest(str(value), [*self.names])
            shown = ", ".join(self.names[:10]) + (", ..." if len(self.names) > 10 else "")
            raise DataError("unknown label", field=field, expected=f"one of {shown}", got=repr(value), hint=hint)
        return name


def labels_of(data: LabelledData, resolve: Callable[[str], Path], rejects: Rejects | None = None) -> Labels:
    """Labels of the recipe; without them the labels in train, sorted, integers by value."""
    if data.names:
        return Labels(data.names)
    seen = {
        row[0].response
        for source in data.train
        for row in read_labelled(source, data, None, resolve, rejects or Rejects())
    }
    numbers = all(re.fullmatch(r"-?\d{1,18}", name) for name in seen)
    names = sorted(seen, key=int) if numbers else sorted(seen)
    if len(names) < 2:
        at = resolve(data.train[0].path)
        raise DataError("all rows have the same label", path=at, field=data.label_columns[0], got=names[0])
    return Labels(tuple(names), found=True)


def read_labelled(
    source: Source, data: LabelledData, labels: Labels | None, resolve: Callable[[str], Path], rejects: Rejects
) -> Iterator[list[Example]]:
    """Rows of a source, each as a single example, while it is read.

    Without `labels`, a response is the label as written.
    """
    path = place_of(source, data, resolve)
    known = {column for columns in data.spellings for column in columns}
    columns = Columns(known, data.known.headerless if data.known else ())
    given = numbered(hub_rows(path)) if source.path.startswith(HUB) else rows_of(path, columns)
    wanted = " and ".join((*data.spellings[0], data.label_columns[0]))
    read = partial(example_of, data, labels, path)
    yield from usable(path, given, read, rejects, f"rows with {wanted}", source.limit, source.every)


def example_of(data: LabelledData, labels: Labels | None, path: Path, line: int, row: Row) -> list[Example]:
    """The example of a row. Rows with equal texts are one group, even with different labels."""
    columns = spelling(row, data.spellings)
    (label,) = spelling(row, tuple((column,) for column in data.label_columns))
    texts = tuple(text_at(row, column) for column in columns)
    name = labels.name_of(row[label], label) if labels else raw_label(row[label], label)
    group = sha256("\0".join(texts).encode()).hexdigest()[:16]
    return [Example("\n".join(texts), name, group, f"{basename(path)}:{line}", texts=texts)]


def spelling(row: Row, known: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    for columns in known:
        if all(column in row for column in columns):
            return columns
    missing = next(column for column in known[0] if column not in row)
    expected = " or ".join(", ".join(columns) for columns in known)
    hint = nearest(missing, [*row])
    raise DataError("missing", field=missing, expected=f"a column {expected}", got=", ".join(row) or "none", hint=hint)


def raw_label(value: Any, field: str) -> str:
    if isinstance(value, bool) or not isinstance(value, int | str):
        got = "null" if value is None else repr(value)
        raise DataError("wrong type", field=field, expected="an integer or text", got=got)
    if isinstance(value, str) and not value.strip():
        raise DataError("empty", field=field, expected="a label")
    return str(value)


def place_of(source: Source, data: LabelledData, resolve: Callable[[str], Path]) -> Path:
    """Path of a source: its file, or `hub:OWNER/NAME/CONFIG/SPLIT` for a split of the hub."""
    if not source.path.startswith(HUB):
        return resolve(source.path)
    split = source.path.removeprefix(HUB)
    return Path(source.path if "/" in split else f"{HUB}{GLUE}/{data.task}/{split}")


def hub_rows(path: Path, streaming: bool = False) -> Iterator[dict[str, Any]]:
    """Rows of a split of the hub, with labels as integers; `streaming`: read them without downloading all first."""
    try:
        import datasets
    except ImportError:
        raise DataError("data sets of the hub need datasets, which is not installed", path=path, hint=EXTRA) from None
    owner, name, *config, split = path.as_posix().removeprefix(HUB).split("/")
    try:
        return iter(datasets.load_dataset(f"{owner}/{name}", *config, split=split, streaming=streaming))
    except Exception as error:  # `datasets` raises errors of many families: of the network, of files, of names
        hint = "check the name and the network, or use files"
        raise DataError("cannot load this split of the hub", path=path, got=str(error), hint=hint) from error
