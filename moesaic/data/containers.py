"""Files of rows, read row by row: JSON Lines, JSON arrays, CSV, tab-separated values and Parquet.

Knows nothing about what rows mean. Text is UTF-8, with a byte order mark or without. A file of another format is
refused with the command that converts it.
"""

import csv
import re
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from json import JSONDecodeError
from pathlib import Path
from typing import Any

from moesaic.errors import DataError
from moesaic.files import disk
from moesaic.files.plain import decoded, decoder

LINE_LIMIT = 16 << 20
BOM = b"\xef\xbb\xbf"
READ = "JSON Lines, a JSON list, CSV, tab-separated values or Parquet"
EXTRA = "pip install 'moesaic[datasets]'"
TO_LINES = 'python -c "import json, sys; [print(json.dumps({row})) for {one} in {source}]" < {path} > {other}'
FOREIGN: dict[bytes, tuple[str, str]] = {
    b"\x1f\x8b": ("gzip", "gzip -dc {path} > {other}"),
    b"\x28\xb5\x2f\xfd": ("zstd", "zstd -dc {path} > {other}"),
    b"BZh": ("bzip2", "bzip2 -dc {path} > {other}"),
    b"\xfd7zXZ": ("xz", "xz -dc {path} > {other}"),
    b"PK\x03\x04": ("zip", "unzip {path}, or save a spreadsheet as CSV"),
    b"\xff\xfe": ("UTF-16", "iconv -f UTF-16 -t UTF-8 {path} > {other}"),
    b"\xfe\xff": ("UTF-16", "iconv -f UTF-16 -t UTF-8 {path} > {other}"),
    b"\xff\xff\xff\xff": (
        "Arrow",
        "python -c \"import datasets; datasets.Dataset.from_file('{path}').to_json('{other}')\"",
    ),
    b"ARROW1": (
        "Arrow",
        "python -c \"from pyarrow import feather, parquet; parquet.write_table(feather.read_table('{path}'), "
        "'{other}.parquet')\"",
    ),
}
"""First bytes of files that are not read -> the format, and the line that converts it."""

LIST = re.compile(rb"\s*\[\s*(\{|$)")
"""The beginning of a JSON list of objects."""
QUOTED = r'(?:"(?:[^"]|"")*"|[^"\t]*)'
QUOTED_RECORD = re.compile(rf"{QUOTED}(?:\t{QUOTED})*")


@dataclass(frozen=True)
class Given:
    """A row of a file: its line (in JSON lists and Parquet its number), its values, its text, and any defect."""

    number: int
    row: Mapping[str, Any]
    text: bytes
    defect: DataError | None = None


@dataclass(frozen=True)
class Columns:
    """Columns of tables: `known` in a line of names, and the names of a table without such a line."""

    known: Collection[str] = ()
    headerless: tuple[str, ...] = ()


def rows_of(path: Path, columns: Columns = Columns()) -> Iterator[Given]:
    """Read the rows of a file one by one, by its content and, for tables, the ending of its name."""
    ending = path.suffix.lower()
    if ending == ".parquet":
        return parquet(path)
    with disk.errors(path):
        if not path.is_file():
            raise _no_file(path)
        with path.open("rb") as file:
            start = file.read(64)
    kind = start.removeprefix(BOM).lstrip()[:1]
    if start.startswith(b"PAR1"):
        return parquet(path)
    if ending == ".csv":
        return table(path, csv_records, columns)
    if ending == ".tsv":
        return table(path, tab_records, columns)
    if LIST.match(start.removeprefix(BOM)):
        return array(path)
    if ending == ".txt" and kind != b"{":
        return table(path, plain_records, columns)
    return json_lines(path)


def converting(line: str, path: Path, **slots: str) -> str:
    """The line that converts a file, with its name in it."""
    other = path.with_suffix(".jsonl") if path.suffix != ".jsonl" else path.with_name(f"{path.stem}-rows.jsonl")
    return "convert it: " + line.format(path=shlex.quote(path.name), other=shlex.quote(other.name), **slots)


def not_utf8(error: UnicodeDecodeError, line: bytes, hint: str | None = None) -> DataError:
    got = f"byte 0x{line[error.start]:02x} at column {error.start + 1}"
    return DataError("not UTF-8", got=got, hint=hint or "convert it from its own encoding: iconv -f CP1252 -t UTF-8")


# --- JSON


def json_lines(path: Path) -> Iterator[Given]:
    for number, line, defect in lines(path):
        try:
            yield Given(number, {} if defect else parsed(path, number, line), line if line.strip() else b"", defect)
        except DataError as error:
            yield Given(number, {}, line, error)


def parsed(path: Path, number: int, line: bytes) -> dict[str, Any]:
    """Parse a line as a row; DataError tells how to convert a file of another form."""
    hint = None if line.endswith(b"\n") else "the file ends in this line: is the file cut off?"
    if number == 1 and line.endswith((b"{\n", b"[\n", b",\n", b"{\r\n", b"[\r\n", b",\r\n")):
        slots = {"row": "row", "one": "row", "source": "json.load(sys.stdin)['KEY']"}
        hint = "one JSON value over several lines; " + converting(TO_LINES, path, **slots)
    elif number == 1 and line.lstrip()[:1] not in (b"{", b"["):
        hint = f"{READ} are read, by the ending of the file's name; lines of plain text become rows so; "
        hint += converting(TO_LINES, path, row="{'text': line}", one="line", source="sys.stdin if line.strip()")
    try:
        return decoded(line, finite=False)
    except UnicodeDecodeError as error:
        raise not_utf8(error, line, hint).at(path=path, line=number) from None
    except JSONDecodeError as error:
        what = f"not JSON: {error.msg.removesuffix(' at')} at column {error.colno}"
        raise DataError(what, path=path, line=number, got=repr(error.doc[:200]), hint=hint) from None
    except ValueError as error:
        raise DataError(f"not a row: {error}", path=path, line=number) from None


def array(path: Path) -> Iterator[Given]:
    """Rows of a JSON list; what stands behind a damaged row cannot be read."""
    with disk.errors(path):
        data = path.read_bytes().removeprefix(BOM)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        start = data.rfind(b"\n", 0, error.start) + 1
        error.start -= start
        raise not_utf8(error, data[start:]).at(path=path, line=line) from None
    at, number, blank = text.index("[") + 1, 0, re.compile(r"\s*")
    separator = re.compile(r"\s*([,\]])\s*")
    at = blank.match(text, at).end()  # type: ignore[union-attr]  # matches nothing too
    done = text[at : at + 1] == "]"
    end = at + 1
    while not done:
        number += 1
        try:
            value, end = decoder(finite=False).raw_decode(text, at)
            between = separator.match(text, end)
            if not between:
                raise JSONDecodeError("Expecting ',' or ']'", text, end)
        except (ValueError, RecursionError) as error:
            got = repr(text[at : at + 200])
            what = f"not JSON: row {number} of the list: {getattr(error, 'msg', error)}"
            raise DataError(what, path=path, line=text.count("\n", 0, at) + 1, got=got) from None
        defect = None if isinstance(value, dict) else DataError("not a row", expected="an object", got=repr(value))
        yield Given(number, {} if defect else value, text[at:end].encode("utf-8", "backslashreplace"), defect)
        at = end = between.end()
        done = between[1] == "]"
    if text[end:].strip():
        raise DataError("not JSON: text behind the list", path=path, got=repr(text[end : end + 200].strip()))


# --- tables

Record = tuple[int, list[str], bytes, DataError | None]
"""Line, fields, text and defect of a record."""


def table(path: Path, records: Callable[[Path], Iterator[Record]], columns: Columns) -> Iterator[Given]:
    """Rows of a table, by the names in its first line; tasks of GLUE know the names of tables without such a line."""
    names: tuple[str, ...] = ()
    for number, fields, text, defect in records(path):
        if not names and defect is None:
            named = {*columns.known} & {*fields} or not columns.headerless
            names = tuple(fields) if named else columns.headerless
            if len({*names}) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise DataError("two columns of one name", path=path, line=number, field=twice)
            if names == tuple(fields):
                continue
        if defect is None and len(fields) != len(names):
            what, count = "wrong number of fields", str(len(fields))
            defect = DataError(what, path=path, line=number, expected=len(names), got=count)
        yield Given(number, dict(zip(names, fields, strict=False)), text, defect)


def csv_records(path: Path) -> Iterator[Record]:
    """Records of a CSV file, whose separator is the one that its first line has most of."""
    _, first, _ = next(lines(path), (0, b"", None))
    header = re.sub(rb'"[^"]*"', b"", first)
    return quoted_records(path, max((",", ";", "\t"), key=lambda mark: header.count(mark.encode())))


def tab_records(path: Path) -> Iterator[Record]:
    """Records of a tab-separated file, quoted if every field that has a quote is validly quoted."""
    return quoted_records(path, "\t") if is_quoted(path) else split_records(path)


def plain_records(path: Path) -> Iterator[Record]:
    """Records of a .txt file, which is tab-separated or no table."""
    _, first, _ = next(lines(path), (0, b"\t", None))
    if b"\t" not in first:
        line = converting(TO_LINES, path, row="{'text': line}", one="line", source="sys.stdin if line.strip()")
        raise DataError("plain text, not rows", path=path, expected=READ, hint=line)
    return tab_records(path)


def is_quoted(path: Path) -> bool:
    """Tell whether a tab-separated file has quotes, and all of them surround a field or are doubled inside one."""
    width, record, any_quote = 0, "", False
    for _, line, _ in lines(path):
        record += line.decode("utf-8", "replace")
        any_quote = any_quote or '"' in record
        if record.count('"') % 2:
            continue
        fields = record.rstrip("\r\n")
        width = width or fields.count("\t")
        if '"' in fields and not (QUOTED_RECORD.fullmatch(fields) and len(split_quoted(fields)) == width + 1):
            return False
        record = ""
    return any_quote and not record


def split_quoted(record: str) -> list[str]:
    return next(csv.reader([record], delimiter="\t"), [])


def split_records(path: Path) -> Iterator[Record]:
    """Records whose quotes are characters like any other, as in the files of GLUE."""
    for number, line, defect in lines(path):
        try:
            yield number, line.decode().rstrip("\r\n").split("\t"), line, defect
        except UnicodeDecodeError as error:
            yield number, [], line, defect or not_utf8(error, line).at(path=path, line=number)


def quoted_records(path: Path, mark: str) -> Iterator[Record]:
    """Records whose fields may stand in quotes, and then hold separators, quotes (doubled) and line breaks."""
    csv.field_size_limit(LINE_LIMIT)
    read: list[tuple[int, bytes, DataError | None]] = []

    def texts() -> Iterator[str]:
        for number, line, defect in lines(path):
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                text, defect = line.decode("utf-8", "replace"), not_utf8(error, line).at(path=path, line=number)
            blank = defect is not None and not line.strip()  # within quotes a blank line is part of its field
            read.append((number, line, None if blank else defect))
            yield text

    reader = csv.reader(texts(), delimiter=mark, strict=True)
    while True:
        read.clear()
        broken, fields = None, list[str]()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            broken = str(error)
        number, text = read[0][0], b"".join(line for _, line, _ in read)
        defect = next((defect for _, _, defect in read if defect), None)
        if broken:
            hint = "a field with a quote stands in quotes, and its own quotes are doubled"
            defect = DataError(f"not a record of a table: {broken}", path=path, line=number, hint=hint)
        if not fields and not defect:
            defect = DataError("a blank line between rows", path=path, line=number, hint="remove it")
        yield number, fields, text, defect


# --- Parquet


def parquet(path: Path) -> Iterator[Given]:
    """Read the rows of a Parquet file; DataError without pyarrow or for a file of another form."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise DataError("Parquet needs pyarrow, which is not installed", path=path, hint=EXTRA) from None
    with disk.errors(path):
        if not path.is_file():
            raise _no_file(path)
        try:
            batches = (batch.to_pylist() for batch in ParquetFile(path).iter_batches())
            yield from numbered(row for batch in batches for row in batch)
        except (ArrowException, ValueError) as error:
            raise DataError("not readable as Parquet", path=path, got=str(error)) from error


def numbered(rows: Iterator[Mapping[str, Any]]) -> Iterator[Given]:
    for number, row in enumerate(rows, 1):
        yield Given(number, row, repr(row).encode("utf-8", "backslashreplace"))


# --- lines


def lines(path: Path) -> Iterator[tuple[int, bytes, DataError | None]]:
    """Number, text and defect of each line of a file, without blank lines at the end.

    A line over the limit is truncated.
    """
    with disk.errors(path):
        if not path.is_file():
            raise _no_file(path)
        with path.open("rb") as file:
            blank: list[tuple[int, bytes]] = []
            for number, line in enumerate(iter(partial(file.readline, LINE_LIMIT + 1), b""), 1):
                too_long = len(line) > LINE_LIMIT
                if number == 1:
                    _refuse_foreign(path, line)
                    line = line.removeprefix(BOM)
                if not too_long and not line.strip():
                    blank.append((number, line))
                    continue
                for at, empty in blank:
                    yield at, empty, DataError("a blank line between rows", path=path, line=at, hint="remove it")
                blank = []
                if too_long:
                    expected = f"at most {LINE_LIMIT:,} bytes"
                    yield number, line, DataError("the line is too long", path=path, line=number, expected=expected)
                    while line and not line.endswith(b"\n"):
                        line = file.readline(LINE_LIMIT + 1)
                else:
                    yield number, line, None


def _no_file(path: Path) -> DataError:
    if not path.exists():
        return DataError("no such file", path=path, expected=READ)
    saved = (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file()
    line = "python -c \"import datasets; datasets.load_from_disk('{path}').to_json('{other}')\""
    return DataError("not a file", path=path, expected=READ, hint=converting(line, path) if saved else None)


def foreign(start: bytes) -> tuple[str, str] | None:
    """The format of bytes that are no UTF-8 text, by their first ones, and the line that converts it."""
    found = next((known for magic, known in FOREIGN.items() if start.startswith(magic)), None)
    if not found and b"\0" in start[:4]:  # UTF-16 or UTF-32 without a mark; a later NUL is a defect of its row
        return "NUL bytes", "iconv -f UTF-16LE -t UTF-8 {path} > {other}"
    return found


def _refuse_foreign(path: Path, start: bytes) -> None:
    if found := foreign(start):
        kind, line = found
        hint = converting(line, path)
        raise DataError("not a file of rows", path=path, line=1, expected="UTF-8 text", got=kind, hint=hint)
