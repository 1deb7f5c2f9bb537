"""The tensors of a folder, in one safetensors file or in several with an index: all are found, each is read when asked.

Knows nothing about what the tensors mean; what a file may be is for `opening.py` to say.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from moesaic.errors import WeightsError, memory_for
from moesaic.files import read_json, write_json
from moesaic.tensors.safetensors_file import Opened, apart, opened
from moesaic.tensors.tensors import TENSORS, write_tensors

INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000
"""What one file holds at most, unless a single tensor is larger."""


class TensorFiles(Mapping[str, Tensor]):
    """Name -> tensor of a folder; a context, as its files are open.

    `mapped`: a tensor is a view of its file and takes no memory but what the system caches anyway; such a file must not
    change or shrink while the tensor lives. Otherwise it is read into memory of its own.
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
        """A tensor in the type asked for: a view where it is stored so, else in memory that is given back at once."""
        if self.dtype(name) == dtype:
            return self[name]
        with memory_for(name, "give more memory, or use smaller experts"):
            memory = apart(self.shape(name), dtype)
        return self.files[self.home[name]].read(name, memory)

    def require_unchanged(self) -> None:
        """Raises WeightsError where a file was written into since it was opened."""
        for file in self.files.values():
            file.require_unchanged()

    def let_go(self) -> None:
        """Hold no view of the files any longer; what is fetched from now on is checked anew."""
        for file in self.files.values():
            file.let_go()

    def announce(self) -> None:
        """All of it is read soon."""
        for file in self.files.values():
            file.announce()

    def __contains__(self, name: object) -> bool:
        return name in self.home  # a Mapping would read the tensor to know

    def __iter__(self) -> Iterator[str]:
        return iter(self.home)

    def __len__(self) -> int:
        return len(self.home)

    def path(self, name: str) -> Path:
        """The file that a tensor is in or, of one that is missing, where it should have been named."""
        return self.folder / self.home.get(name, INDEX if self.sharded else TENSORS)

    @property
    def doubts(self) -> list[str]:
        """What is odd about the tensors that were read: see `opening.py`."""
        return [doubt for file in self.files.values() for doubt in file.doubts]

    def shape(self, name: str) -> list[int]:
        return list(self.files[self.home[name]].shapes[name])

    def dtype(self, name: str) -> torch.dtype:
        return self.files[self.home[name]].dtypes[name]

    def _check(self, listed: dict[str, str]) -> None:
        """Every name is in the file that the index says, and in no other; no file holds more."""
        for file, found in self.files.items():
            for name in found.names:
                if listed.get(name) != file:
                    what = "a tensor that the index does not say is here"
                    raise WeightsError(what, path=self.folder / file, field=name, got=listed.get(name))
        for name in sorted(listed.keys() - self.home.keys())[:1]:
            what = "the index names a tensor that is not in its file"
            raise WeightsError(what, path=self.folder / listed[name], field=name)
        said = (read_json(self.folder / INDEX).get("metadata") or {}).get("total_size")
        sizes = [math.prod(self.shape(name)) * self.dtype(name).itemsize for name in self.home]
        if said is not None and said != sum(sizes):
            what, field = "not the size of the tensors", "metadata.total_size"
            raise WeightsError(what, path=self.folder / INDEX, field=field, expected=sum(sizes), got=said)


def read_index(path: Path) -> dict[str, str]:
    """Tensor -> file, as an index lists them; no file outside its own folder."""
    listed = read_json(path).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise WeightsError("not an index of tensors", path=path, field="weight_map", expected="name: file")
    for name, file in listed.items():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            expected = "the name of a .safetensors beside it"
            raise WeightsError("not a file of this folder", path=path, field=name, expected=expected, got=file)
    return listed


def write_shards(folder: Path, tensors: Mapping[str, Tensor], limit: int = SHARD_BYTES) -> None:
    """Write the tensors, sorted, into one file or, beyond `limit` bytes, into several and an index.

    What is asked for a tensor's size is not kept, so tensors that are made when asked for take the memory of one file.
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
