"""Safetensors files, checked in full and read tensor by tensor.

The library checks the header; this file refuses what the library accepts: duplicate keys, names that are no module
paths, values that are not finite. Knows nothing about what the tensors mean or which ones a model needs.
"""

import errno
import math
import mmap
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from moesaic.errors import WeightsError, clipped, memory_for
from moesaic.files import disk
from moesaic.files.plain import decoded
from moesaic.files.regular import open_regular
from moesaic.tensors.refused_formats import require_safetensors

MAX_HEADER = 8 << 20
MAX_TENSORS = 100_000
MAX_DIMENSIONS = 8
MAX_BYTES = (1 << 63) - 1
NAME = re.compile(r"[A-Za-z0-9_.\-]{1,256}")
QUOTES = 10 * MAX_TENSORS + 20_000  # ten a tensor: name, `dtype`, its type, `shape`, `data_offsets`; and the metadata
BRACKETS = 3 * MAX_TENSORS + 2_000
KEYS = {"dtype", "shape", "data_offsets"}
LFS = b"version "  # the beginning of git-lfs pointers; no file has a header of that length
CHUNK = 1 << 20
HINT = "close other programs, or use a smaller model"
HUGE = 1e6  # far above any trained weight: such a value has lost a bit of its exponent
PLAIN = 1.0  # neither 0 nor huge
PREFIX = "Error while deserializing header: "  # of the library's messages

DTYPES = {
    **{"BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64},
    **{"U8": torch.uint8, "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64},
    **{"I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64},
    **{"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64},
}
"""The format's types of whole bytes, as torch has them."""

HUGE_BITS = {kind: int(torch.tensor(HUGE, dtype=kind).view(torch.int16)) for kind in (torch.float16, torch.bfloat16)}
"""The bits of HUGE in types of two bytes; in float16 they are infinity."""

MEASURED = {
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
}
"""Types with an `aminmax` in torch."""


@dataclass(frozen=True)
class Stored:
    """The description of a tensor in its file: `kind` is the file's word for its type; `begin` and `end` in bytes."""

    kind: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.kind]


class Opened:
    """An open file with a checked header: `tensors` in the order of their data, `metadata`, and the values on demand.

    `get` returns views of the file, `read` copies; both check all values. Touching a view of a file that was truncated
    ends the process (SIGBUS), as with every mapped file: replace files of weights instead of overwriting them, and use
    `read` where that is not certain. `doubts` are warnings about suspicious but valid tensors.
    """

    def __init__(self, path: Path):
        self.path, self.doubts = path, list[str]()
        self._checked: set[str] = set()
        self._mapped: mmap.mmap | None = None
        require_safetensors(path)
        self._file = open_regular(path)
        with disk.errors(path):
            about = os.fstat(self._file.fileno())
            self.size, self.written = about.st_size, about.st_mtime_ns
            header = self._header()
            self.tensors, self.metadata = self._described(header)

    def __enter__(self) -> "Opened":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; views stay valid."""
        self._file.close()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self.close()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.tensors)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: stored.shape for name, stored in self.tensors.items()}

    @cached_property
    def dtypes(self) -> dict[str, torch.dtype]:
        return {name: stored.dtype for name, stored in self.tensors.items()}

    @cached_property
    def _scratch(self) -> Tensor:
        """A buffer for pieces of tensors, always the same so that it stays in the processor's cache."""
        return torch.empty(CHUNK, dtype=torch.uint8)

    def get(self, name: str) -> Tensor:
        """A tensor as a view of the file, checked the first time; its pages are in the system's cache.

        Writing into a view changes a private copy of the page. A tensor that is not aligned to its type is copied.
        WeightsError where a value is NaN or infinity, or the file was truncated.
        """
        stored = self.stored(name)
        if stored.begin % stored.dtype.itemsize or stored.begin == stored.end:
            return self.read(name)
        with disk.errors(self.path):
            if (size := os.fstat(self._file.fileno()).st_size) < self.size:
                raise self._cut(name, size)
            if self._mapped is None:
                with memory_for(f"a view of {self.path.name}", HINT):
                    self._mapped = mapping(self._file.fileno(), self.size)
            count = math.prod(stored.shape)
            flat = torch.frombuffer(self._mapped, dtype=stored.dtype, count=count, offset=stored.begin)
            if name not in self._checked and not _plain(flat):
                self._pieces(name, stored, None)
            self._checked.add(name)
        return flat.view(stored.shape)

    def read(self, name: str, into: Tensor | None = None) -> Tensor:
        """A checked copy of a tensor; raises as `get` does, and MemoryLimitError.

        `into`: memory of the tensor's shape for the copy; values are converted piece by piece to its type.
        """
        stored = self.stored(name)
        if into is None:
            with memory_for(f"{name} of {self.path.name}", HINT):
                into = torch.empty(stored.shape, dtype=stored.dtype)
        with disk.errors(self.path):
            self._pieces(name, stored, into.view(-1))
        return into

    def let_go(self) -> None:
        """Drop the mapping, so that its pages can go back to the system. Tensors are checked anew from now on."""
        self._mapped, self._checked = None, set()

    def require_unchanged(self) -> None:
        """Raise WeightsError if the file was written since it was opened; deleting or replacing it is harmless."""
        with disk.errors(self.path):
            now = os.fstat(self._file.fileno())
        if (now.st_size, now.st_mtime_ns) != (self.size, self.written):
            hint = "load the mixture again, from a folder that does not change"
            raise WeightsError("the file was changed while it was in use", path=self.path, hint=hint)

    def announce(self) -> None:
        """Ask the system to read the file ahead, into its cache."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)

    def stored(self, name: str) -> Stored:
        if name not in self.tensors:
            raise WeightsError("a tensor is missing", path=self.path, field=name)
        return self.tensors[name]

    def _header(self) -> bytes:
        if self.size < 8:
            raise _broken(self.path, "it is cut off", "8 bytes or more", self.size)
        start = torch.empty(8, dtype=torch.uint8)
        self._fill("header", start, 0)
        if (first := start.numpy().tobytes()) == LFS:
            raise WeightsError("a git-lfs pointer, not the file", path=self.path, hint="run `git lfs pull`")
        length, limit = int.from_bytes(first, "little"), min(MAX_HEADER, self.size - 8)
        if length > limit:
            raise _broken(self.path, "its header is too long", f"at most {limit:,} bytes", f"{length:,}")
        header = torch.empty(length, dtype=torch.uint8)
        self._fill("header", header, 8)
        return header.numpy().tobytes()

    def _described(self, header: bytes) -> tuple[dict[str, Stored], dict[str, str]]:
        """The tensors in the order of their data, and the metadata; the library checks the header."""
        if header[:1] != b"{":
            raise _broken(self.path, "its header is not an object", "{", repr(header[:1]))
        if header.count(b'"') > QUOTES or header.count(b"{") + header.count(b"[") > BRACKETS:
            raise _broken(self.path, "its header has too many parts", f"at most {MAX_TENSORS:,} tensors")
        try:
            with memory_for(f"a view of {self.path.name}", HINT), safe_open(self._itself(), framework="np"):
                found = decoded(header)
        except (SafetensorError, ValueError) as error:
            raise _broken(self.path, clipped(str(error).removeprefix(PREFIX))) from error
        metadata = found.pop("__metadata__", {})
        if len(found) > MAX_TENSORS:
            raise _broken(self.path, "it has too many tensors", f"at most {MAX_TENSORS:,}", f"{len(found):,}")
        begin = 8 + len(header)
        tensors = {name: _stored(self.path, name, facts, begin) for name, facts in found.items()}
        return dict(sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end))), metadata

    def _itself(self) -> Path:
        """The system's own name for the open file, so that the library reads the same one; its path elsewhere."""
        numbered = Path("/dev/fd") / str(self._file.fileno())
        return numbered if numbered.exists() else self.path

    def _pieces(self, name: str, stored: Stored, into: Tensor | None) -> None:
        """Read a tensor piece by piece, and check each piece while it is in the processor's cache."""
        count, width, bad = math.prod(stored.shape), stored.dtype.itemsize, 0
        low, high, step = math.inf, -math.inf, CHUNK // width
        lands = into is not None and into.dtype == stored.dtype
        scratch = into if into is not None and lands else self._scratch.view(stored.dtype)
        for start in range(0, count, step):
            stop = min(start + step, count)
            part = scratch[start:stop] if lands else scratch[: stop - start]
            self._fill(name, part, stored.begin + start * width)
            least, most = _extremes(part)
            if not math.isfinite(least + most):
                wide = part if part.dtype.itemsize > 1 else part.float()
                bad += int(part.numel() - torch.isfinite(wide).sum())
            low, high = min(low, least), max(high, most)
            if into is not None and not lands:
                into[start:stop] = part
        self._judge(name, stored, bad, low, high)
        self._checked.add(name)

    def _fill(self, name: str, part: Tensor, at: int) -> None:
        left = part.view(torch.uint8).numpy().data
        self._file.seek(at)
        while left:
            if not (count := self._file.readinto(left)):  # type: ignore[attr-defined]
                raise self._cut(name, os.fstat(self._file.fileno()).st_size)
            left = left[count:]

    def _cut(self, name: str, size: int) -> WeightsError:
        what, hint = "the file was truncated while it was read", "wait until it is written in full"
        expected, got = f"{self.size:,} bytes", f"{size:,}"
        return WeightsError(what, path=self.path, field=name, expected=expected, got=got, hint=hint)

    def _judge(self, name: str, stored: Stored, bad: int, low: float, high: float) -> None:
        if stored.kind == "BOOL" and high > 1:
            raise WeightsError("not boolean values", path=self.path, field=name, expected="bytes of 0 and 1", got=high)
        if bad:
            got = f"{bad:,} of {math.prod(stored.shape):,} values"
            raise WeightsError("the tensor holds NaN or infinity", path=self.path, field=name, got=got)
        if name not in self._checked and stored.dtype.is_floating_point:
            if max(-low, high) > HUGE:
                self._doubt(f"{name}: holds values up to {max(-low, high):.3g}")
            if len(stored.shape) > 1 and low == high == 0:
                self._doubt(f"{name}: all values are 0")

    def _doubt(self, what: str) -> None:
        if (doubt := f"{self.path}: {what}") not in self.doubts:
            self.doubts.append(doubt)


def _plain(part: Tensor) -> bool:
    """A fast test, which nearly all weights pass: finite, far below HUGE, not all 0.

    No value is larger than the root of the sum of squares. Types of two bytes have no fast sum of squares, but the bits
    of values without their signs are ordered like the magnitudes.
    """
    if part.dtype in (torch.float32, torch.float64):
        return 0 < float(torch.dot(part, part)) < (HUGE / 2) ** 2
    if (limit := HUGE_BITS.get(part.dtype)) is None:
        return False
    return all(0 < _largest(bits.numpy()) < limit for bits in part.view(torch.int16).split(CHUNK // 2))


def _largest(bits: NDArray[np.int16]) -> int:
    """The bits of the largest magnitude among values of two bytes: one pass for each sign."""
    return max(int(bits.max()), int(bits.view(np.uint16).max()) & 0x7FFF)


def _extremes(part: Tensor) -> tuple[float, float]:
    """The least and greatest value; NaN or infinity where there is one. For plain values, any plain bounds."""
    if _plain(part):
        return -PLAIN, PLAIN
    if part.dtype == torch.bool:
        part = part.view(torch.uint8)
    elif part.is_complex():
        part = torch.view_as_real(part)
    elif part.dtype not in MEASURED:
        part = part.to(torch.float64 if part.dtype.itemsize > 1 else torch.float32)
    least, most = torch.aminmax(part)
    return float(least), float(most)


def apart(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Memory that goes back to the system when it is freed, unlike memory of the heap."""
    size = math.prod(shape) * dtype.itemsize
    if not size:
        return torch.empty(tuple(shape), dtype=dtype)
    return torch.frombuffer(mapping(-1, size), dtype=dtype).view(tuple(shape))


def mapping(fd: int, size: int) -> mmap.mmap:
    """Map a file, or new memory for -1; writing changes a private copy. MemoryError where there is no memory."""
    try:
        return mmap.mmap(fd, size, access=mmap.ACCESS_COPY)
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise MemoryError(f"{size:,} bytes") from error
        raise


def opened(path: Path) -> Opened:
    """Open a file and read its header of at most 8 MiB.

    WeightsError, with file and tensor, for a header that the format (github.com/huggingface/safetensors) forbids, a
    duplicate key, a name that is no module path, more than 100,000 tensors.
    """
    return Opened(path)


def _stored(path: Path, name: str, facts: Mapping[str, Any], data: int) -> Stored:
    """The checked description of a tensor."""
    if not NAME.fullmatch(name):
        raise _broken(path, "not a name for a tensor", "1 to 256 letters, digits, dots, _ or -", repr(name), name)
    if facts.keys() != KEYS:
        raise _broken(path, "not a description of a tensor", ", ".join(sorted(KEYS)), ", ".join(facts), name)
    kind, shape, (begin, end) = facts["dtype"], facts["shape"], facts["data_offsets"]
    if kind not in DTYPES:
        raise _broken(path, "unknown type", f"one of {', '.join(DTYPES)}", repr(kind), f"{name}: dtype")
    size = math.prod(max(length, 1) for length in shape) * DTYPES[kind].itemsize
    if len(shape) > MAX_DIMENSIONS or size > MAX_BYTES:
        expected = f"at most {MAX_DIMENSIONS} dimensions and {MAX_BYTES:,} bytes"
        raise _broken(path, "not a shape", expected, repr(shape), f"{name}: shape")
    return Stored(kind, tuple(shape), data + begin, data + end)


def _broken(path: Path, what: str, expected: Any = None, got: Any = None, field: str | None = None) -> WeightsError:
    what = f"not a readable safetensors file: {what}"
    return WeightsError(what, path=path, field=field, expected=expected, got=got)
