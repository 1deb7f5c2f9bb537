"""Named tensors <-> one safetensors file, and the fingerprint of their values.

Knows nothing about what the tensors mean.
"""

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from moesaic.errors import WeightsError
from moesaic.files import disk
from moesaic.tensors.safetensors_file import opened


class Made(Mapping[str, Tensor]):
    """Tensors that are made on demand and not cached, so that only those in use take memory."""

    def __init__(self, names: Collection[str], make: Callable[[str], Tensor]):
        self.names, self.make = names, make

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.names:
            raise KeyError(name)
        return self.make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write the tensors, sorted and unchanged, into a folder that the caller publishes whole."""
    ready = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    disk.create(path, save(ready, metadata={"format": "pt"}))


def read_tensors(path: Path, mapped: bool = False) -> dict[str, Tensor]:
    """All tensors of a file, as copies or, `mapped`, as views; raises as `Opened` does."""
    with opened(path) as file:
        return {name: file.get(name) if mapped else file.read(name) for name in sorted(file.names)}


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """A hash of names, types, shapes and values, independent of how they are stored."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def fit(module: torch.nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Copy tensors into a module; WeightsError unless they have exactly its names and shapes."""
    require_fit(module, tensors, path)
    with torch.no_grad():
        for name, place in module.state_dict(keep_vars=True).items():
            place.copy_(tensors[name])


def require_fit(module: torch.nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise WeightsError unless tensors have exactly the names and shapes of a module's."""
    own = dict(module.state_dict(keep_vars=True))
    for name in sorted(own.keys() - tensors.keys())[:1]:
        raise WeightsError("a tensor is missing", path=path, field=name, expected=list(own[name].shape))
    for name in sorted(tensors.keys() - own.keys())[:1]:
        raise WeightsError("a tensor that the model has no place for", path=path, field=name)
    for name, place in own.items():
        if place.shape != tensors[name].shape:
            what, expected, got = "a tensor of another shape", list(place.shape), str(list(tensors[name].shape))
            raise WeightsError(what, path=path, field=name, expected=expected, got=got)
