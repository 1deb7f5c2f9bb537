"""A safetensors file, checked before a byte of it is believed, and fetched tensor by tensor.

Knows nothing about what the tensors mean, nor which ones a model needs.
"""

import errno
import math
import mmap
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moesaic.errors import WeightsError, memory_for
from moesaic.files import disk
from moesaic.files.leases import leased
from moesaic.files.plain import decoded
from moesaic.files.regular import open_regular
from moesaic.tensors.refused_formats import require_safetensors

MAX_HEADER = 8 << 20
MAX_TENSORS = 100_000
MAX_DIMENSIONS = 8
MAX_BYTES = (1 << 63) - 1
NAME = re.compile(r"[A-Za-z0-9_.\-]{1,256}")
QUOTES = 10 * MAX_TENSORS + 20_000
"""A tensor needs ten: its name, `dtype`, its type, `shape`, `data_offsets`. The rest is for the metadata."""

BRACKETS = 3 * MAX_TENSORS + 2_000
KEYS = {"dtype", "shape", "data_offsets"}
LFS = b"version "  # as the pointers of git-lfs begin; as a length it would be beyond all files
CHUNK = 1 << 20
STRETCH = 16 << 20
"""How much is looked at under one lease: even a slow disk reads it long before whoever waits is let in."""

HUGE = 1e6
"""No weight of a trained model comes near it: what does has lost a bit of its exponent."""

PLAIN = 1.0
"""A magnitude that is neither 0 nor huge."""

POPULATE = 22
"""MADV_POPULATE_READ of Linux, which Python has no name for: pages are read now, and what cannot be is an error."""

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
}
"""The types of whole bytes that torch has too."""

HUGE_BITS = {kind: int(torch.tensor(HUGE, dtype=kind).view(torch.int16)) for kind in (torch.float16, torch.bfloat16)}
"""The bits of HUGE in the types of two bytes; it is infinity in one of them."""

MEASURED = {
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
}
"""The types that torch finds the extremes of."""


@dataclass(frozen=True)
class Stored:
    """A tensor as its file describes it: `kind` is the file's word for its type; `begin` and `end` count bytes."""

    kind: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.kind]


class Opened:
    """An open file whose description holds: `tensors` in the order of their data, `metadata`, and the values on demand.

    `get` gives views of the file, `read` memory of its own. All values are checked, where they lie while a lease keeps
    the file as long as it is, else in a copy that a call of the system makes: a file that is cut off meanwhile is an
    error. To touch a view of a file that is cut off *later* ends the process by a signal (SIGBUS), as with every mapped
    file: weights are replaced, not written over, and what must outlive that is fetched by `read`. `doubts` are lines
    about tensors that are odd but may be meant.
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
        self.tensors, self.metadata = described(path, header, self.size)

    def __enter__(self) -> "Opened":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing more can be fetched; views stay."""
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
        """Room for a piece of any tensor: the same for all, so that it stays in the processor's cache."""
        return torch.empty(CHUNK, dtype=torch.uint8)

    def get(self, name: str) -> Tensor:
        """A tensor as a view of the file, checked the first time: the pages are those that the system caches anyway.

        Writing into it changes a private copy of the page. One that does not lie on a multiple of its type's width is
        read instead. Raises WeightsError where a value is NaN or infinity, or the file is no longer as long as it was.
        """
        stored = self.stored(name)
        if stored.begin % stored.dtype.itemsize or stored.begin == stored.end:
            return self.read(name)
        with disk.errors(self.path):
            if (size := os.fstat(self._file.fileno()).st_size) < self.size:
                raise self._cut(name, size)
            if self._mapped is None:
                with memory_for(f"a view of {self.path.name}", "close other programs, or use a smaller model"):
                    self._mapped = mapping(self._file.fileno(), self.size)
            if name not in self._checked:
                if self._plain_in_place(self._mapped, stored):
                    self._checked.add(name)
                else:
                    self._pieces(name, stored, None)
        count = math.prod(stored.shape)
        return torch.frombuffer(self._mapped, dtype=stored.dtype, count=count, offset=stored.begin).view(stored.shape)

    def read(self, name: str, into: Tensor | None = None) -> Tensor:
        """A tensor in memory of its own, checked; raises as `get` does, and MemoryLimitError.

        `into`: that memory, of the tensor's shape; where it is of another type, values are converted piece by piece.
        """
        stored = self.stored(name)
        if into is None:
            with memory_for(f"{name} of {self.path.name}", "close other programs, or use a smaller model"):
                into = torch.empty(stored.shape, dtype=stored.dtype)
        with disk.errors(self.path):
            self._pieces(name, stored, into.view(-1))
        return into

    def let_go(self) -> None:
        """Hold no view any longer: pages go back to the system when nobody else does. Check again what is asked."""
        self._mapped, self._checked = None, set()

    def require_unchanged(self) -> None:
        """Raises WeightsError where the file was written into since it was opened.

        One that was deleted or replaced is not changed: what was opened is what is read.
        """
        with disk.errors(self.path):
            now = os.fstat(self._file.fileno())
        if (now.st_size, now.st_mtime_ns) != (self.size, self.written):
            hint = "load the mixture again, from a folder that nobody writes into"
            raise WeightsError("the file was changed while it was in use", path=self.path, hint=hint)

    def announce(self) -> None:
        """All of it is read soon: the system may begin, into memory that it takes back whenever it likes."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)

    def stored(self, name: str) -> Stored:
        """What the file says of a tensor."""
        if name not in self.tensors:
            raise WeightsError("a tensor is missing", path=self.path, field=name)
        return self.tensors[name]

    def _header(self) -> bytes:
        if self.size < 8:
            raise _broken(self.path, "it is cut off", "8 bytes or more", self.size)
        start = torch.empty(8, dtype=torch.uint8)
        self._fill("header", start, 0)
        if (first := start.numpy().tobytes()) == LFS:
            raise WeightsError("what git knows of the file, not the file", path=self.path, hint="run `git lfs pull`")
        length, limit = int.from_bytes(first, "little"), min(MAX_HEADER, self.size - 8)
        if length > limit:
            raise _broken(self.path, "its header is too long", f"at most {limit:,} bytes", f"{length:,}")
        header = torch.empty(length, dtype=torch.uint8)
        self._fill("header", header, 8)
        return header.numpy().tobytes()

    def _plain_in_place(self, mapped: mmap.mmap, stored: Stored) -> bool:
        """Whether a tensor's values are plain, looking at them where they lie.

        False, too, where a look could end the process: the file may be cut off meanwhile, or the disk cannot read it.
        """
        fd, width = self._file.fileno(), stored.dtype.itemsize
        for start in range(stored.begin, stored.end, STRETCH):
            stop, page = min(start + STRETCH, stored.end), start - start % mmap.PAGESIZE
            with leased(fd) as held:
                if not held or os.fstat(fd).st_size < self.size:
                    return False
                try:
                    mapped.madvise(POPULATE, page, stop - page)
                except OSError:
                    return False
                values = torch.frombuffer(mapped, dtype=stored.dtype, count=(stop - start) // width, offset=start)
                if not _plain(values):
                    return False
        return True

    def _pieces(self, name: str, stored: Stored, into: Tensor | None) -> None:
        """Read a tensor's values piece by piece, each checked while it is in the processor's cache."""
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
                bad += _not_finite(part)
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
        what, hint = "the file was cut off while it was read", "wait until whatever writes it is done"
        expected, got = f"{self.size:,} bytes", f"{size:,}"
        return WeightsError(what, path=self.path, field=name, expected=expected, got=got, hint=hint)

    def _judge(self, name: str, stored: Stored, bad: int, low: float, high: float) -> None:
        if stored.kind == "BOOL" and high > 1:
            raise WeightsError("not truth values", path=self.path, field=name, expected="bytes of 0 and 1", got=high)
        if bad:
            got = f"{bad:,} of {math.prod(stored.shape):,} values"
            raise WeightsError("the tensor holds NaN or infinity", path=self.path, field=name, got=got)
        if name not in self._checked and stored.dtype.is_floating_point:
            if max(-low, high) > HUGE:
                self._doubt(f"{name}: holds values up to {max(-low, high):.3g}")
            if len(stored.shape) > 1 and low == high == 0:
                self._doubt(f"{name}: all of it is 0")

    def _doubt(self, what: str) -> None:
        if (doubt := f"{self.path}: {what}") not in self.doubts:
            self.doubts.append(doubt)


def _plain(part: Tensor) -> bool:
    """Whether it is surely finite, nowhere near HUGE and somewhere not 0, as nearly all weights are: told fast.

    No value is larger than the root of the sum of squares. For types of two bytes there is no fast sum of squares, but
    the bits of a value without its sign are, as a number, ordered as magnitudes are.
    """
    if part.dtype in (torch.float32, torch.float64):
        return 0 < float(torch.dot(part, part)) < (HUGE / 2) ** 2
    if (limit := HUGE_BITS.get(part.dtype)) is None:
        return False
    return all(0 < _largest(bits.numpy()) < limit for bits in part.view(torch.int16).split(CHUNK // 2))


def _largest(bits: NDArray[np.int16]) -> int:
    """Of values of two bytes, the bits of the largest magnitude, in two passes: of the positive, of the negative."""
    return max(int(bits.max()), int(bits.view(np.uint16).max()) & 0x7FFF)


def _extremes(part: Tensor) -> tuple[float, float]:
    """Its least and greatest value; NaN or infinity where it holds one. Of plain values, others as plain."""
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


def _not_finite(part: Tensor) -> int:
    wide = part if part.dtype.itemsize > 1 else part.float()
    return int(part.numel() - torch.isfinite(wide).sum())


def apart(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Memory that goes back to the system as soon as nobody holds it; the heap would keep it for later."""
    size = math.prod(shape) * dtype.itemsize
    if not size:
        return torch.empty(tuple(shape), dtype=dtype)
    return torch.frombuffer(mapping(-1, size), dtype=dtype).view(tuple(shape))


def mapping(fd: int, size: int) -> mmap.mmap:
    """A file, or for -1 nothing yet, as memory; what is written there is nobody else's. Raises MemoryError."""
    try:
        return mmap.mmap(fd, size, access=mmap.ACCESS_COPY)
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise MemoryError(f"{size:,} bytes") from error
        raise


def opened(path: Path) -> Opened:
    """A file opened for reading tensors; nothing of it has been read but its header of at most 8 MiB.

    Raises WeightsError naming file and tensor for whatever the format (github.com/huggingface/safetensors) forbids, and
    for a key that stands twice, a name that is no module path, more than 100,000 tensors.
    """
    return Opened(path)


def described(path: Path, header: bytes, size: int) -> tuple[dict[str, Stored], dict[str, str]]:
    """The tensors and the metadata that the header of a file of `size` bytes describes, in the order of the data."""
    if header[:1] != b"{":
        raise _broken(path, "its header is not an object", "{", repr(header[:1]))
    if header.count(b'"') > QUOTES or header.count(b"{") + header.count(b"[") > BRACKETS:
        raise _broken(path, "its header has too many parts", f"at most {MAX_TENSORS:,} tensors")
    try:
        found = decoded(header)
    except ValueError as error:
        raise _broken(path, f"its header is not usable as JSON: {error}") from error
    metadata = found.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise _broken(path, "not a table of texts", "a text for every key", metadata, "__metadata__")
    if len(found) > MAX_TENSORS:
        raise _broken(path, "it has too many tensors", f"at most {MAX_TENSORS:,}", f"{len(found):,}")
    end = 8 + len(header)
    tensors = {name: _stored(path, name, facts, end) for name, facts in found.items()}
    tensors = dict(sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)))
    for name, stored in tensors.items():
        if stored.begin != end:
            what = "its data overlaps another tensor's" if stored.begin < end else "there is a gap before its data"
            raise _broken(path, what, f"data from byte {end:,} of the file", f"{stored.begin:,}", name)
        end = stored.end
    if end != size:
        what = "it is cut off" if end > size else "there is more behind the last tensor"
        raise _broken(path, what, f"{end:,} bytes", f"{size:,}")
    return tensors, metadata


def _stored(path: Path, name: str, facts: Any, data: int) -> Stored:
    if not NAME.fullmatch(name):
        raise _broken(path, "not a name for a tensor", "1 to 256 letters, digits, dots, _ or -", repr(name), name)
    if not isinstance(facts, dict) or facts.keys() != KEYS:
        raise _broken(path, "not a description of a tensor", ", ".join(sorted(KEYS)), repr(facts), name)
    kind, shape, offsets = facts["dtype"], facts["shape"], facts["data_offsets"]
    if not isinstance(kind, str) or kind not in DTYPES:
        raise _broken(path, "a type that is not read", f"one of {', '.join(DTYPES)}", repr(kind), f"{name}: dtype")
    if not _counts(shape) or len(shape) > MAX_DIMENSIONS:
        raise _broken(
            path, "not a shape", f"at most {MAX_DIMENSIONS} whole numbers from 0", repr(shape), f"{name}: shape"
        )
    width = DTYPES[kind].itemsize
    if math.prod(max(length, 1) for length in shape) * width > MAX_BYTES:
        raise _broken(path, "no memory is that large", f"at most {MAX_BYTES:,} bytes", repr(shape), f"{name}: shape")
    if not _counts(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= MAX_BYTES:
        raise _broken(path, "not a place in the file", "[begin, end]", repr(offsets), f"{name}: data_offsets")
    needed, got = math.prod(shape) * width, offsets[1] - offsets[0]
    if needed != got:
        raise _broken(path, "its data is not as long as its type and shape say", f"{needed:,} bytes", f"{got:,}", name)
    return Stored(kind, tuple(shape), data + offsets[0], data + offsets[1])


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)


def _broken(path: Path, what: str, expected: Any = None, got: Any = None, field: str | None = None) -> WeightsError:
    what = f"not a readable safetensors file: {what}"
    return WeightsError(what, path=path, field=field, expected=expected, got=got)
