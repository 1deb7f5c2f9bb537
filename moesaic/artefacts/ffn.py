"""Feed-forward experts on disk: the blocks' tensors under their Hugging Face names, their sizes, and our manifest.

A folder without a manifest loads too, unverified. Knows nothing about training or routing.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moesaic.adapters.feedforward import FFN, ffns, put, require_glu, take
from moesaic.adapters.lora import layers_in
from moesaic.artefacts.adapter import KIND, manifest_of
from moesaic.artefacts.stored import Stored
from moesaic.errors import CompatibilityError, WeightsError
from moesaic.files import digest, read_json, write_json, write_manifest
from moesaic.tensors.file_names import TENSORS
from moesaic.tensors.shards import TensorFiles
from moesaic.tensors.tensors import fingerprint, write_tensors

CONFIG = "ffn_config.json"
FILES = (CONFIG, TENSORS)
ADAPTER = "ffn"
PARTS = ("gate", "up", "down")
NAME = re.compile(rf"model\.(layers\.(?:0|[1-9]\d*)\.mlp)\.({'|'.join(PARTS)})_proj\.weight")


@dataclass(frozen=True)
class StoredFFN(Stored):
    """A feed-forward expert as read, and its manifest ({} for a foreign expert)."""

    ffn: FFN
    manifest: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        return digest([ADAPTER, fingerprint(tensors_of(self.ffn))])


def save_ffn(folder: Path, ffn: FFN, base_fingerprint: str, facts: dict[str, Any]) -> None:
    """Write an expert into an empty folder, with its manifest."""
    write_tensors(folder / TENSORS, tensors_of(ffn))
    inner, hidden = next(iter(ffn.blocks.values()))[0].shape
    sizes = {"hidden_size": hidden, "intermediate_size": inner, "layers": ffn.layers}
    write_json(folder / CONFIG, {"expert": ADAPTER, **sizes})
    own = {"kind": KIND, "fingerprint": StoredFFN(ffn, {}).fingerprint, "base_fingerprint": base_fingerprint}
    shape = {"adapter": ADAPTER, "layers": ffn.layers, "parameters": ffn.num_parameters}
    write_manifest(folder, {**own, **shape, **facts})


def load_ffn(folder: Path, base_fingerprint: str | None = None, decoder: nn.Module | None = None) -> StoredFFN:
    """Read an expert; a base named by its manifest must have this `base_fingerprint`.

    `decoder`: the plain decoder of the base, whose blocks must have the same sizes and give the type. Every block must
    be complete and agree with the expert's config: WeightsError or CompatibilityError otherwise.
    """
    with FFNFiles(folder, base_fingerprint, decoder) as files:
        return StoredFFN(files.built(files.tensors()), files.manifest)


class FFNFiles:
    """The open files of an expert: headers are checked on opening, values on reading.

    Arguments and errors are those of `load_ffn`.
    """

    def __init__(self, folder: Path, base_fingerprint: str | None, decoder: nn.Module | None):
        self.manifest = manifest_of(folder, base_fingerprint)
        config = read_json(folder / CONFIG)
        if (kind := config.get("expert")) != ADAPTER:
            raise WeightsError("another kind", path=folder / CONFIG, field="expert", expected=ADAPTER, got=kind)
        sizes = config.get("intermediate_size"), config.get("hidden_size")
        slots = {} if decoder is None else ffns(decoder)
        self.types: dict[str, torch.dtype] = {}
        self.paths: set[str] = set()
        self.files = TensorFiles(folder, mapped=True)
        with self.files.open:  # closes the files if a tensor is refused
            for name in sorted(self.files.keys()):
                self.check(name, sizes, None if decoder is None else slots)
            for at in sorted(self.paths):
                for name in (f"model.{at}.{part}_proj.weight" for part in PARTS):
                    if name not in self.files:
                        raise WeightsError("a tensor is missing", path=folder / TENSORS, field=name)
            if not self.paths or layers_in(self.paths) != config.get("layers"):
                what, expected = "other layers than in the config", str(config.get("layers"))
                raise WeightsError(what, path=folder, field="layers", expected=expected, got=str(layers_in(self.paths)))
            self.files.open = self.files.open.pop_all()

    def check(self, name: str, sizes: tuple[Any, Any], slots: dict[str, nn.Module] | None) -> None:
        """Check that a tensor belongs to a block, with the sizes of the config and of the base."""
        match, path = NAME.fullmatch(name), self.files.path(name)
        if not match:
            expected = "model.layers.N.mlp.{gate,up,down}_proj.weight"
            raise WeightsError("not a tensor of a feed-forward block", path=path, field=name, expected=expected)
        at, part = match.groups()
        wanted = list(reversed(sizes)) if part == "down" else list(sizes)
        if self.files.shape(name) != wanted:
            got = str(self.files.shape(name))
            raise WeightsError("a tensor of another shape", path=path, field=name, expected=str(wanted), got=got)
        self.types[name] = torch.get_default_dtype() if slots is None else fitting(slots, at, sizes, path).dtype
        self.paths.add(at)

    def __enter__(self) -> "FFNFiles":
        return self

    def __exit__(self, *_: object) -> None:
        self.files.open.close()

    @property
    def size(self) -> int:
        return sum(math.prod(self.files.shape(name)) * dtype.itemsize for name, dtype in self.types.items())

    @property
    def outline(self) -> FFN:
        meta = {name: torch.empty(self.files.shape(name), device="meta", dtype=d) for name, d in self.types.items()}
        return self.built(meta)

    def tensors(self) -> dict[str, Tensor]:
        """Read and check the tensors, by their names."""
        self.files.require_unchanged()
        return {name: self.files.fetch(name, dtype) for name, dtype in self.types.items()}

    def built(self, tensors: Mapping[str, Tensor]) -> FFN:
        parts = {at: [tensors[f"model.{at}.{part}_proj.weight"] for part in PARTS] for at in sorted(self.paths)}
        return FFN({at: (gate, up, down.t()) for at, (gate, up, down) in parts.items()})


@dataclass(frozen=True)
class FFNPlace:
    """The slots that `reserve` prepared for an expert in a decoder, and the expert's files."""

    files: FFNFiles
    decoder: nn.Module
    index: int

    @property
    def size(self) -> int:
        return self.files.size

    def tensors(self) -> dict[str, Tensor]:
        return self.files.tensors()

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        put(self.decoder, self.index, self.files.built(tensors))

    def empty(self) -> None:
        take(self.decoder, self.index, self.files.paths)

    def let_go(self) -> None:
        self.files.files.let_go()

    def announce(self) -> None:
        self.files.files.announce()


def fitting(slots: dict[str, nn.Module], at: str, sizes: tuple[Any, Any], path: Path) -> Tensor:
    """The gate of the base's block at this path, which must have the expert's sizes."""
    if at not in slots:
        raise CompatibilityError("the base has no such feed-forward block", path=path, field=at)
    own = require_glu(slots[at], at).gate_proj.weight
    if tuple(own.shape) != sizes:
        what, expected = "the expert was made for another base", str(list(own.shape))
        raise CompatibilityError(what, path=path, field=at, expected=expected, got=str(list(sizes)))
    return own


def tensors_of(ffn: FFN) -> dict[str, Tensor]:
    """An expert's tensors under their names and in their layout on disk."""
    return {
        f"model.{path}.{name}_proj.weight": part.t() if name == "down" else part
        for path, block in ffn.blocks.items()
        for name, part in zip(PARTS, block, strict=True)
    }
