"""The container of llama.cpp: metadata and tensors in one file, read within bounds and written.

The package `gguf` dequantises. Knows nothing about what the keys and the tensors mean.
"""

import math
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader, RawIOBase
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from torch import Tensor

from moesaic.errors import StorageError, WeightsError, clipped
from moesaic.files import disk
from moesaic.files.regular import open_regular

EXTRA = "pip install 'moesaic[gguf]'"
MAGIC, VERSIONS = b"GGUF", (2, 3)
HEADER, KEYS, TENSORS, LISTED = 1 << 28, 1 << 16, 1 << 20, 1 << 21
"""Bounds of a file: bytes of its header, keys, tensors, and values of one list."""
NAME, DIMENSIONS = 256, 4
ALIGNMENT = 32

TEXT, LIST, TRUTH = 8, 9, 7
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", TRUTH: "?", 10: "Q", 11: "q", 12: "d"}
"""Types of values -> their letters in `struct`; texts and lists have TEXT and LIST."""

PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
QUANTISED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
"""Types of tensors that are read as they are, and those that are dequantised to float32."""
WRITTEN = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def library() -> ModuleType:
    """The package `gguf`; StorageError where it is not installed."""
    try:
        import gguf
    except ImportError as error:
        raise StorageError("GGUF needs the package gguf", hint=f"install the extra: {EXTRA}") from error
    return gguf


@dataclass(frozen=True)
class Held:
    """A tensor in a file: the name of its type, its shape, the first byte and the number of bytes."""

    kind: str
    shape: tuple[int, ...]
    start: int
    size: int

    @property
    def dtype(self) -> torch.dtype:
        return PLAIN.get(self.kind, torch.float32)


@dataclass(frozen=True)
class Container:
    """A file whose header was read and whose tensors are read on demand."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Held]

    def tensor(self, name: str, part: int | None = None) -> Tensor:
        """A tensor, dequantised to float32 unless it is stored in a plain type. `part`: only this index of the first
        dimension.
        """
        held = self.tensors[name]
        shape, start, size = held.shape, held.start, held.size
        if part is not None:
            shape, size = shape[1:], size // shape[0]
            start += part * size
        with disk.errors(self.path), open_regular(self.path) as file:
            file.seek(start)
            data = bytearray(_exactly(file, size, self.path))
        if held.kind in PLAIN:
            return torch.frombuffer(data, dtype=PLAIN[held.kind]).reshape(shape)
        gguf = library()
        rows = np.frombuffer(data, np.uint8).reshape(*shape[:-1], -1)
        return torch.from_numpy(gguf.dequantize(rows, gguf.GGMLQuantizationType[held.kind])).reshape(shape)

    def need(self, key: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        """A value of the metadata; WeightsError if it is missing without a default, or of another type."""
        value = self.metadata.get(key, default)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            what = "a key is missing" if value is None else "a value of another type"
            kinds = kind if isinstance(kind, tuple) else (kind,)
            expected = " or ".join(one.__name__ for one in kinds)
            raise WeightsError(what, path=self.path, field=key, expected=expected, got=value)
        return value


def read(path: Path) -> Container:
    """Read the header of a file; WeightsError for one that is damaged, hostile or of an unknown quantisation."""
    with disk.errors(path), BufferedReader(cast(RawIOBase, open_regular(path)), 1 << 20) as file:
        return _Header(path, file).container()


def _exactly(file: BinaryIO, size: int, path: Path) -> bytes:
    pieces, left = [], size
    while left:
        piece = file.read(min(left, 1 << 28))
        if not piece:
            raise WeightsError("the file is shorter than it says", path=path, expected=f"{left:,} more bytes")
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


class _Header:
    """The beginning of a file, and the position up to which it has been read."""

    def __init__(self, path: Path, file: "BufferedReader[Any]"):
        self.path, self.file, self.at = path, file, 0
        self.size = os.fstat(file.fileno()).st_size

    def container(self) -> Container:
        magic = self.take(min(4, self.size))
        if magic != MAGIC:
            raise self.refused("not a GGUF file", expected=repr(MAGIC), got=repr(magic))
        version = self.number("I")
        if version not in VERSIONS:
            raise self.refused("another version of GGUF", expected="2 or 3, little-endian", got=version)
        tensors, keys = self.count(TENSORS, "tensors"), self.count(KEYS, "keys")
        metadata: dict[str, Any] = {}
        for _ in range(keys):
            key = self.text(1 << 16)
            if key in metadata:
                raise self.refused("a key stands twice", field=key)
            metadata[key] = self.value(self.number("I"))
        alignment = metadata.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 16 or alignment & (alignment - 1):
            raise self.refused("no alignment", field="general.alignment", expected="a power of two", got=alignment)
        found = [self.tensor() for _ in range(tensors)]
        begin = -(-self.at // alignment) * alignment
        held: dict[str, Held] = {}
        for name, one in found:
            if name in held:
                raise self.refused("a tensor stands twice", field=name)
            held[name] = Held(one.kind, one.shape, begin + one.start, one.size)
            if held[name].start + one.size > self.size:
                expected, got = f"at most {self.size:,} bytes", f"{held[name].start + one.size:,}"
                raise self.refused("a tensor ends beyond the file", field=name, expected=expected, got=got)
        return Container(self.path, metadata, held)

    def refused(self, what: str, **facts: Any) -> WeightsError:
        return WeightsError(what, path=self.path, **facts)

    def take(self, size: int) -> bytes:
        if size > min(self.size, HEADER) - self.at:
            raise self.refused("the file ends within its header", got=f"{self.size:,} bytes")
        self.at += size
        return self.file.read(size)

    def number(self, letter: str) -> Any:
        value = struct.unpack(f"<{letter}", self.take(struct.calcsize(f"<{letter}")))[0]
        return float(str(np.float32(value))) if letter == "f" else value  # 1e-05, not 9.999999747378752e-06

    def count(self, most: int, what: str) -> int:
        count: int = self.number("Q")
        if count > most:
            raise self.refused(f"too many {what}", expected=f"at most {most:,}", got=count)
        return count

    def text(self, most: int = HEADER) -> str:
        data = self.take(self.count(most, "characters in a text"))
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise self.refused(f"text that is not UTF-8 before byte {self.at:,}", got=clipped(repr(data))) from None

    def value(self, kind: int) -> Any:
        if kind == TEXT:
            return self.text()
        if kind == LIST:
            of, count = self.number("I"), self.count(LISTED, "values in a list")
            if of == TEXT:
                return [self.text() for _ in range(count)]
            letter = self.letter(of)
            return [*struct.unpack(f"<{count}{letter}", self.take(count * struct.calcsize(f"<{letter}")))]
        return self.number(self.letter(kind))

    def letter(self, kind: int) -> str:
        if kind not in NUMBERS:
            raise self.refused("a value of an unknown type", got=kind)
        return NUMBERS[kind]

    def tensor(self) -> tuple[str, Held]:
        gguf = library()
        name, dimensions = self.text(NAME), self.number("I")
        if not 1 <= dimensions <= DIMENSIONS:
            raise self.refused("a tensor of so many dimensions", field=name, got=dimensions)
        shape = tuple(reversed([self.number("Q") for _ in range(dimensions)]))
        number, start = self.number("I"), self.number("Q")
        known = {int(kind): kind.name for kind in gguf.GGMLQuantizationType}
        kind = known.get(number, f"number {number}")
        if kind not in PLAIN and kind not in QUANTISED:
            expected = f"one of {', '.join((*PLAIN, *QUANTISED))}"
            raise self.refused("an unknown quantisation", field=name, expected=expected, got=kind)
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
        if not all(0 < one < 1 << 40 for one in shape) or shape[-1] % block:
            raise self.refused(
                "a tensor of no such shape", field=name, expected=f"rows of blocks of {block}", got=shape
            )
        return name, Held(kind, shape, start, math.prod(shape) // block * size)


# --- writing ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Given:
    """A tensor to write: its shape and type, and the function that makes it when it is written."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]


def write(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Given], kind: str = "") -> None:
    """Write a file: matrices as `kind` (default: in their own types), tensors of one dimension as float32.

    Matrices whose rows are no whole blocks of `kind` are written as F16, as llama.cpp does.
    """
    gguf = library()
    types, sizes = gguf.GGMLQuantizationType, gguf.GGML_QUANT_SIZES
    infos, kinds, at = b"", dict[str, Any](), 0
    for name, given in tensors.items():
        own = "F32" if len(given.shape) == 1 else kind or WRITTEN[given.dtype]
        block, size = sizes[types[own]]
        if given.shape[-1] % block:
            own, (block, size) = "F16", sizes[types.F16]
        kinds[name] = types[own]
        dimensions = struct.pack(f"<I{len(given.shape)}Q", len(given.shape), *reversed(given.shape))
        infos += _text(name) + dimensions + struct.pack("<IQ", types[own], at)
        at += -(-math.prod(given.shape) // block * size // ALIGNMENT) * ALIGNMENT
    keys = b"".join(_text(key) + _typed(value) for key, value in metadata.items())
    head = MAGIC + struct.pack("<IQQ", VERSIONS[-1], len(tensors), len(metadata)) + keys + infos
    disk.create_from(path, _pieces(head, tensors, kinds))


def _pieces(head: bytes, tensors: Mapping[str, Given], kinds: Mapping[str, Any]) -> Iterator[bytes]:
    """The bytes of a file: its header, and each tensor when it is needed."""
    yield _padded(head)
    for name, given in tensors.items():
        values = given.make().detach().cpu()
        if kinds[name].name in PLAIN:
            plain = values.to(PLAIN[kinds[name].name]).contiguous()
            yield _padded(plain.view(-1).view(torch.uint8).numpy().tobytes())
        else:
            yield _padded(library().quantize(values.to(torch.float32).contiguous().numpy(), kinds[name]).tobytes())


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % ALIGNMENT)


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def _typed(value: Any) -> bytes:
    """A value behind its type: whole numbers of lists are signed, as token types are, others are not."""
    if isinstance(value, str):
        return struct.pack("<I", TEXT) + _text(value)
    if isinstance(value, list):
        if value and isinstance(value[0], str):
            return struct.pack("<IIQ", LIST, TEXT, len(value)) + b"".join(map(_text, value))
        kind = 6 if value and isinstance(value[0], float) else 5
        return struct.pack(f"<IIQ{len(value)}{NUMBERS[kind]}", LIST, kind, len(value), *value)
    kind = {bool: TRUTH, int: 4, float: 6}[type(value)]
    return struct.pack(f"<I{NUMBERS[kind]}", kind, value)
