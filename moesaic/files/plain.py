"""Plain data as JSON: read strictly, written whole, and named by its content.

Knows nothing about what the keys mean: `recipe`, `config` and the manifests judge that.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from moesaic.errors import WeightsError, clipped
from moesaic.files import disk
from moesaic.files.regular import open_regular

T = TypeVar("T")

LIMIT = 16 << 20
SEALED_LIMIT = 256 << 20
"""Our own evaluations hold text, and every token's nats."""


def write_json(path: Path, value: Any) -> None:
    """Replaces a JSON file whole or not at all; NaN and infinity raise ValueError."""
    write_bytes(path, encoded(value, indent=2))


def write_bytes(path: Path, data: bytes) -> None:
    """Replaces a file whole or not at all."""
    with disk.scratch(path.parent, path) as scratch:
        disk.create(scratch, data)
        disk.sync(scratch)
        disk.rename(scratch, path)
        disk.sync(path.parent)


def read_json(path: Path, limit: int = LIMIT) -> dict[str, Any]:
    """Reads a JSON object of at most `limit` bytes: no key twice, no NaN, no infinity.

    It is a regular file that lies in its folder, or in the hub cache of that: see `regular.py`.
    """
    return _read(path, limit, decoded)


def read_json_list(path: Path, limit: int = LIMIT) -> list[dict[str, Any]]:
    """Reads a JSON list of objects as strictly as `read_json` an object."""
    return _read(path, limit, decoded_list)


def _read(path: Path, limit: int, decode: Callable[[bytes], T]) -> T:
    with disk.errors(path):
        if not path.is_file():
            raise WeightsError("there is no such file", path=path)
        with open_regular(path) as file:
            data = file.read(limit + 1)
    if len(data) > limit:
        raise WeightsError("the file is too large", path=path, expected=f"at most {limit:,} bytes")
    try:
        return decode(data)
    except ValueError as error:
        raise WeightsError(f"not usable as JSON: {clipped(str(error))}", path=path) from error


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """Replaces a JSON file that no manifest vouches for: it carries its own digest."""
    write_json(path, {**value, "digest": digest(value)})


def read_sealed(path: Path) -> dict[str, Any]:
    """Reads what `write_sealed` wrote, without the digest, once it is found as it was written."""
    value = read_json(path, SEALED_LIMIT)
    said, found = value.pop("digest", None), digest(value)
    if said != found:
        what, hint = "the file was changed after it was written", "make it again"
        raise WeightsError(what, path=path, field="digest", expected=found, got=said, hint=hint)
    return value


def digest(value: Any) -> str:
    """Names plain data by its content, whatever the order of its keys: the SHA-256 of its canonical JSON, in hex."""
    plain = _parse(json.dumps(value, allow_nan=False))  # keys turn into text first: numbers and text sort differently
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def encoded(value: Any, indent: int | None = None) -> bytes:
    """JSON text as it is written to disk, one line unless indented, with a newline at its end."""
    text = json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace")  # which spells a lone surrogate just as JSON does


def decoded(data: bytes) -> dict[str, Any]:
    """The one object that JSON text holds; anything else, and anything doubtful in it, raises ValueError."""
    value = _parse(data.decode("utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, got {type(value).__name__}")
    return value


def decoded_list(data: bytes) -> list[dict[str, Any]]:
    """The one list of objects that JSON text holds; anything else raises ValueError."""
    value = _parse(data.decode("utf-8"))
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise ValueError("expected a list of objects")
    return value


def _parse(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_float=_finite, parse_constant=_finite)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError(f"the key '{Counter(key for key, _ in pairs).most_common(1)[0][0]}' stands twice")
    return value


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is not a finite number")
    return value
