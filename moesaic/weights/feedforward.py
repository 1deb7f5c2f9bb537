"""Feed-forward experts on disk: the blocks' tensors under their Hugging Face names, what they fit, and our manifest.

A folder without a manifest loads too, as declared but unverified. Knows nothing about training or routing.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moesaic.adapters.feedforward import FFN, ffns, require_glu
from moesaic.errors import CompatibilityError, WeightsError
from moesaic.files import digest, read_json, write_json, write_manifest
from moesaic.weights.adapter import KIND, manifest_of
from moesaic.weights.shards import TensorFiles
from moesaic.weights.tensors import TENSORS, fingerprint, write_tensors

CONFIG = "ffn_config.json"
FILES = (CONFIG, TENSORS)
ADAPTER = "ffn"
PARTS = ("gate", "up", "down")
NAME = re.compile(rf"model\.(layers\.(?:0|[1-9]\d*)\.mlp)\.({'|'.join(PARTS)})_proj\.weight")


@dataclass(frozen=True)
class StoredFFN:
    """An expert as read: its blocks, and what its folder says of it ({} for a foreign one)."""

    ffn: FFN
    manifest: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """The hash of its tensors, under the names they have on disk."""
        return digest([ADAPTER, fingerprint(tensors_of(self.ffn))])

    @property
    def base_fingerprint(self) -> str | None:
        """The base it was made for; None: declared at best, and never verified."""
        return self.manifest.get("base_fingerprint")


def save_ffn(folder: Path, ffn: FFN, base_fingerprint: str, facts: dict[str, Any]) -> None:
    """Write an expert into an empty folder, with its manifest."""
    write_tensors(folder / TENSORS, tensors_of(ffn))
    inner, hidden = next(iter(ffn.blocks.values()))[0].shape
    write_json(
        folder / CONFIG,
        {"expert": ADAPTER, "hidden_size": hidden, "intermediate_size": inner, "layers": ffn.layers},
    )
    own = {"kind": KIND, "fingerprint": StoredFFN(ffn, {}).fingerprint, "base_fingerprint": base_fingerprint}
    shape = {"adapter": ADAPTER, "layers": ffn.layers, "parameters": ffn.num_parameters}
    write_manifest(folder, {**own, **shape, **facts})


def load_ffn(folder: Path, base_fingerprint: str | None = None, decoder: nn.Module | None = None) -> StoredFFN:
    """Read an expert; where it says which base it was made for, that must be `base_fingerprint`.

    With the plain `decoder` of the base its blocks are held against those there, and read in their type. Every block is
    whole, and the tensors are those that its description promises: WeightsError or CompatibilityError otherwise.
    """
    manifest = manifest_of(folder, base_fingerprint)
    told = read_json(folder / CONFIG)
    if told.get("expert") != ADAPTER:
        raise WeightsError(
            "another kind", path=folder / CONFIG, field="expert", expected=ADAPTER, got=told.get("expert")
        )
    sizes = told.get("intermediate_size"), told.get("hidden_size")
    slots = {} if decoder is None else ffns(decoder)
    blocks: dict[str, dict[str, Tensor]] = {}
    with TensorFiles(folder, mapped=True) as files:
        for name in sorted(files.keys()):
            match, path = NAME.fullmatch(name), files.path(name)
            if not match:
                expected = "model.layers.N.mlp.{gate,up,down}_proj.weight"
                raise WeightsError("no tensor of a feed-forward block", path=path, field=name, expected=expected)
            at, part = match.groups()
            wanted = list(reversed(sizes)) if part == "down" else list(sizes)
            if files.shape(name) != wanted:
                got = str(files.shape(name))
                raise WeightsError("a tensor of another shape", path=path, field=name, expected=str(wanted), got=got)
            dtype = torch.get_default_dtype()
            if decoder is not None:
                dtype = fitting(slots, at, sizes, path).dtype
            blocks.setdefault(at, {})[part] = files[name].to(dtype)
    for at, block in sorted(blocks.items()):
        for part in (part for part in PARTS if part not in block):
            raise WeightsError("a tensor is missing", path=folder / TENSORS, field=f"model.{at}.{part}_proj.weight")
    ffn = FFN({at: (block["gate"], block["up"], block["down"].t()) for at, block in blocks.items()})
    if not blocks or ffn.layers != told.get("layers"):
        field, expected = "layers", str(told.get("layers"))
        raise WeightsError(
            "not the layers it tells of", path=folder, field=field, expected=expected, got=str(ffn.layers)
        )
    return StoredFFN(ffn, manifest)


def fitting(slots: dict[str, nn.Module], at: str, sizes: tuple[Any, Any], path: Path) -> Tensor:
    """The gate of the base's own block there, which must have the expert's sizes."""
    if at not in slots:
        raise CompatibilityError("the base has no such feed-forward block", path=path, field=at)
    own = require_glu(slots[at], at).gate_proj.weight
    if tuple(own.shape) != sizes:
        what, expected = "the expert was made for another base", str(list(own.shape))
        raise CompatibilityError(what, path=path, field=at, expected=expected, got=str(list(sizes)))
    return own


def tensors_of(ffn: FFN) -> dict[str, Tensor]:
    """An expert's tensors under the names and in the layout that they have on disk."""
    return {
        f"model.{path}.{name}_proj.weight": part.t() if name == "down" else part
        for path, block in ffn.blocks.items()
        for name, part in zip(PARTS, block, strict=True)
    }
