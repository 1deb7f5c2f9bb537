"""Plain data as JSON: read strictly, written whole, and named by its content.

Knows nothing about what the keys mean.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from moesaic.errors import WeightsError, clipped
from moesaic.files import disk
from moesaic.files.regular import read_regular

T = TypeVar("T")

LIMIT = 16 << 20
SEALED_LIMIT = 256 << 20  # evaluations hold texts and the nats of every token


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file whole or not at all; NaN and infinity raise ValueError."""
    write_bytes(path, encoded(value, indent=2))


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file whole or not at all."""
    with disk.scratch(path.parent, path) as scratch:
        disk.create(scratch, data)
        disk.sync(scratch)
        disk.rename(scratch, path)
        disk.sync(path.parent)


def read_json(path: Path, limit: int = LIMIT) -> dict[str, Any]:
    """Read a JSON object of at most `limit` bytes from a regular file: no key twice, no NaN, no infinity."""
    return _read(path, limit, decoded)


def read_json_list(path: Path, limit: int = LIMIT) -> list[dict[str, Any]]:
    """Read a JSON list of objects as strictly as `read_json` reads an object."""
    return _read(path, limit, decoded_list)


def _read(path: Path, limit: int, decode: Callable[[bytes], T]) -> T:
    try:
        return decode(read_regular(path, limit))
    except ValueError as error:
        raise WeightsError(f"not usable as JSON: {clipped(str(error))}", path=path) from error


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """Replace a JSON file that no manifest lists, with its own digest in it."""
    write_json(path, {**value, "digest": digest(value)})


def read_sealed(path: Path) -> dict[str, Any]:
    """Read a file of `write_sealed`, without its digest, after checking it."""
    value = read_json(path, SEALED_LIMIT)
    declared, found = value.pop("digest", None), digest(value)
    if declared != found:
        what, hint = "the file was changed after it was written", "make it again"
        raise WeightsError(what, path=path, field="digest", expected=found, got=declared, hint=hint)
    return value


def digest(value: Any) -> str:
    """The SHA-256 in hex of the canonical JSON of plain data, independent of the order of keys."""
    plain = _parse(json.dumps(value, allow_nan=False))  # keys turn into text first: numbers and text sort differently
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def digest_of_list(items: Iterable[Any]) -> str:
    """The digest of a list, without all of it in memory."""
    return _digest_of(_pieces(items))


def digest_of_lists(lists: Iterable[Iterable[Any]]) -> str:
    """The digest of a list of lists, without any of them in memory."""
    return _digest_of(_joined(_pieces(some) for some in lists))


def _digest_of(pieces: Iterable[bytes]) -> str:
    found = hashlib.sha256()
    for piece in pieces:
        found.update(piece)
    return found.hexdigest()


def _pieces(items: Iterable[Any]) -> Iterator[bytes]:
    """The canonical JSON of a list whose items hold no tables."""
    return _joined([json.dumps(item, allow_nan=False, separators=(",", ":")).encode()] for item in items)


def _joined(values: Iterable[Iterable[bytes]]) -> Iterator[bytes]:
    """A list in JSON, of values in JSON."""
    yield b"["
    for number, value in enumerate(values):
        if number:
            yield b","
        yield from value
    yield b"]"


def encoded(value: Any, indent: int | None = None) -> bytes:
    """JSON as bytes for the disk, on one line unless indented, with a final newline."""
    text = json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace")  # spells a lone surrogate as JSON does


def decoded(data: bytes, finite: bool = True) -> dict[str, Any]:
    """Parse a JSON object strictly; ValueError for anything else, and unless `finite` is False for NaN and infinity."""
    value = _parse(data.decode("utf-8"), finite)
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, got {type(value).__name__}")
    return value


def decoded_list(data: bytes) -> list[dict[str, Any]]:
    """Parse a JSON list of objects strictly; ValueError for anything else."""
    value = _parse(data.decode("utf-8"))
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise ValueError("expected a list of objects")
    return value


def decoder(finite: bool = True) -> json.JSONDecoder:
    """A decoder that refuses a key given twice, and unless `finite` is False also NaN and infinity."""
    number = _finite if finite else float
    return json.JSONDecoder(object_pairs_hook=_unique, parse_float=number, parse_constant=number)


def _parse(text: str, finite: bool = True) -> Any:
    if text.startswith("\ufeff"):
        raise json.JSONDecodeError("Unexpected UTF-8 BOM (decode using utf-8-sig)", text, 0)
    try:
        return decoder(finite).decode(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError(f"duplicate key '{Counter(key for key, _ in pairs).most_common(1)[0][0]}'")
    return value


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is not a finite number")
    return value
