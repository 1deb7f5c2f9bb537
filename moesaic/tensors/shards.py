"""The tensors of a folder, in one safetensors file or in several with an index, each read on demand.

Knows nothing about what the tensors mean; `safetensors_file.py` checks the files.
"""

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from moesaic.errors import MoesaicWarning, WeightsError, clipped, memory_for
from moesaic.files import read_json, write_json
from moesaic.tensors.file_names import INDEX, TENSORS
from moesaic.tensors.safetensors_file import Opened, apart, opened
from moesaic.tensors.tensors import write_tensors

SHARD_BYTES = 5_000_000_000
"""The size limit of one file, unless a single tensor is larger."""


class TensorFiles(Mapping[str, Tensor]):
    """Name -> tensor of a folder; a context manager that holds the files open.

    `mapped`: tensors are views of their files, in the system's cache; such a file must not change or shrink while its
    tensors live. Otherwise tensors are copies.
    """

    def __init__(self, folder: Path, mapped: bool):
        self.folder, self.mapped, self.open = folder, mapped, ExitStack()
        self.sharded = not (folder / TENSORS).exists() and (folder / INDEX).exists()
        listed = read_index(folder / INDEX) if self.sharded else {}
        with self.open:  # closed at once where a file is refused
            names = sorted(set(listed.values())) if self.sharded else [TENSORS]
            self.files: dict[str, Opened] = {name: self.open.enter_context(opened(folder / name)) for name in names}
            self.home = {name: file for file, found in self.files.items() for name in found.names}
            if self.sharded:
                self._check(listed)
            self.open = self.open.pop_all()

    def __enter__(self) -> "TensorFiles":
        return self

    def __exit__(self, *_: object) -> None:
        self.open.close()

    def __getitem__(self, name: str) -> Tensor:
        file = self.files[self.home[name]]
        return file.get(name) if self.mapped else file.read(name)  # both check the values

    def fetch(self, name: str, dtype: torch.dtype) -> Tensor:
        """A tensor in this type: `self[name]` where it is stored so, else a copy outside the heap."""
        if self.dtype(name) == dtype:
            return self[name]
        with memory_for(name, "give more memory, or use smaller experts"):
            memory = apart(self.shape(name), dtype)
        return self.files[self.home[name]].read(name, memory)

    def read_into(self, name: str, memory: Tensor) -> None:
        """Read a tensor into memory of its shape, piece by piece, and convert it to the type of the memory."""
        self.files[self.home[name]].read(name, memory)

    def require_unchanged(self) -> None:
        for file in self.files.values():
            file.require_unchanged()

    def let_go(self) -> None:
        for file in self.files.values():
            file.let_go()

    def announce(self) -> None:
        for file in self.files.values():
            file.announce()

    def __contains__(self, name: object) -> bool:
        return name in self.home  # a Mapping would read the tensor to know

    def __iter__(self) -> Iterator[str]:
        return iter(self.home)

    def __len__(self) -> int:
        return len(self.home)

    def path(self, name: str) -> Path:
        """The file of a tensor; for a missing one, the file that should have named it."""
        return self.folder / self.home.get(name, INDEX if self.sharded else TENSORS)

    @property
    def doubts(self) -> list[str]:
        """Warnings about the tensors read so far: see `Opened`."""
        return [doubt for file in self.files.values() for doubt in file.doubts]

    def shape(self, name: str) -> list[int]:
        return list(self.files[self.home[name]].shapes[name])

    def dtype(self, name: str) -> torch.dtype:
        return self.files[self.home[name]].dtypes[name]

    def _check(self, listed: dict[str, str]) -> None:
        """Raise WeightsError unless each file holds exactly the tensors that the index lists there.

        Warns about a wrong total size, which nothing computes with.
        """
        for file, found in self.files.items():
            for name in found.names:
                if listed.get(name) != file:
                    what = "the index does not list this tensor in this file"
                    raise WeightsError(what, path=self.folder / file, field=name, got=listed.get(name))
        for name in sorted(listed.keys() - self.home.keys())[:1]:
            what = "the index names a tensor that is not in its file"
            raise WeightsError(what, path=self.folder / listed[name], field=name)
        declared = (read_json(self.folder / INDEX).get("metadata") or {}).get("total_size")
        size = sum(math.prod(self.shape(name)) * self.dtype(name).itemsize for name in self.home)
        if declared is not None and declared != size:
            text = f"metadata.total_size is {clipped(declared)}, but all tensors are there, with {size} bytes"
            warnings.warn(f"{self.folder / INDEX}: {text}", MoesaicWarning, stacklevel=3)


def read_index(path: Path) -> dict[str, str]:
    """Tensor -> file of an index; WeightsError for a file outside its folder."""
    listed = read_json(path).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise WeightsError("not an index of tensors", path=path, field="weight_map", expected="name: file")
    for name, file in listed.items():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            expected = "the name of a .safetensors file"
            raise WeightsError("not a file of this folder", path=path, field=name, expected=expected, got=file)
    return listed


def write_shards(folder: Path, tensors: Mapping[str, Tensor], limit: int = SHARD_BYTES) -> None:
    """Write the tensors, sorted, into one file or, beyond `limit` bytes, into several and an index.

    Only the tensors of one file are in memory at a time, where `tensors` makes them on demand.
    """
    sizes = {name: tensors[name].nbytes for name in sorted(tensors)}
    shards: list[list[str]] = [[]]
    room = limit
    for name, size in sizes.items():
        if size > room and shards[-1]:
            shards.append([])
            room = limit
        shards[-1].append(name)
        room -= size
    if len(shards) == 1:
        write_tensors(folder / TENSORS, tensors)
        return
    stem, suffix = TENSORS.split(".")
    index: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"{stem}-{number:05d}-of-{len(shards):05d}.{suffix}"
        write_tensors(folder / file, {name: tensors[name] for name in names})
        index |= dict.fromkeys(names, file)
    write_json(folder / INDEX, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": index})
