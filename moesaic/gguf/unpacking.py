"""A file of llama.cpp -> a folder of a model or an adapter, as other programs write it, in the user's cache.

Knows nothing about the modules that compute with the tensors.
"""

import hashlib
import math
import os
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from moesaic.errors import WeightsError
from moesaic.files import write_json, write_new
from moesaic.files.locking import turn_at
from moesaic.gguf import adapters, container, names, vocabulary
from moesaic.gguf.container import Container
from moesaic.tensors.shards import write_shards
from moesaic.tensors.tensors import Made

FORMAT = 1
"""Part of the name of an unpacked folder: files are unpacked anew where this changes."""


def cache() -> Path:
    """The folder of unpacked files, which may be removed at any time: in XDG_CACHE_HOME, else in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "moesaic" / "gguf"


def unpacked(path: Path) -> Path:
    """The folder of a file, unpacked unless the cache has it; WeightsError for a file that cannot be read.

    A file is known by its path, size and time of change. Quantised tensors take four bytes a value.
    """
    file = container.read(path)
    facts = path.stat()
    known = f"{FORMAT}\n{os.path.realpath(path)}\n{facts.st_size}\n{facts.st_mtime_ns}"
    target = cache() / f"{path.stem}-{hashlib.sha256(known.encode()).hexdigest()[:16]}"
    if target.is_dir():
        return target
    kind = file.need("general.type", str, "model")
    write: Callable[[Container, Path], None] = adapters.unpack if kind == "adapter" else unpack
    size = sum(held.dtype.itemsize * math.prod(held.shape) for held in file.tensors.values())
    with turn_at(cache() / ".lock"):
        if not target.is_dir():
            write_new(target, lambda folder: write(file, folder), size, "the unpacked file")
    return target


def unpack(file: Container, folder: Path) -> None:
    """Write config.json, the tokenizer and the tensors of a model into an empty folder."""
    family = names.family_in(file)
    found = names.sources(file.path, family, {name: held.shape for name, held in file.tensors.items()})
    config = names.settings(file, family, found)
    heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
    write_json(folder / "config.json", config | vocabulary.unpack(file, folder))

    def values(name: str) -> Tensor:
        try:
            return names.read_values(family, name, file.tensor(*found[name]), heads.__getitem__)
        except WeightsError as error:
            raise error.at(path=file.path) from None

    write_shards(folder, Made(found, values))
