"""LoRA experts on disk: a PEFT adapter folder, plus our manifest.

A folder without a manifest loads too, as declared but unverified. Knows nothing about training or routing.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from moesaic.adapters import LoRA
from moesaic.errors import CompatibilityError, WeightsError
from moesaic.files import MANIFEST, digest, read_manifest, write_json, write_manifest
from moesaic.weights.peft import CONFIG, TENSORS, read_adapter, tensors_of, written
from moesaic.weights.tensors import fingerprint, write_tensors

KIND = "expert"
FILES = (CONFIG, TENSORS)


@dataclass(frozen=True)
class StoredExpert:
    """An expert as read: its matrices, and what its folder says of it ({} for a foreign adapter)."""

    lora: LoRA
    manifest: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """The hash of its matrices, under the names they have on disk, and of their scales."""
        own = [dict(self.lora.alphas)] if self.lora.alphas else []
        return digest([fingerprint(tensors_of(self.lora)), self.lora.rank, self.lora.alpha, *own])

    @property
    def base_fingerprint(self) -> str | None:
        """The base it was trained for; None: declared at best, and never verified."""
        return self.manifest.get("base_fingerprint")


def save_expert(folder: Path, lora: LoRA, base_fingerprint: str, facts: dict[str, Any]) -> None:
    """Write an expert into an empty folder, as PEFT would, with its manifest."""
    config, tensors = written(lora)
    write_tensors(folder / TENSORS, tensors)
    write_json(folder / CONFIG, config)
    shape = {"adapter": "lora", "rank": lora.rank, "alpha": lora.alpha, "targets": lora.targets, "layers": lora.layers}
    own = {
        "kind": KIND,
        "fingerprint": StoredExpert(lora, {}).fingerprint,
        "base_fingerprint": base_fingerprint,
    }
    write_manifest(folder, {**own, **shape, "parameters": lora.num_parameters, **facts})


def load_expert(folder: Path, base_fingerprint: str | None = None, decoder: nn.Module | None = None) -> StoredExpert:
    """Read an expert, ours or PEFT's; where it says which base it was trained on, that must be `base_fingerprint`.

    With the plain `decoder` of the base, the expert is held against it: see `read_adapter`.
    """
    if not folder.is_dir():
        raise WeightsError("no such expert folder", path=folder)
    manifest = read_manifest(folder, KIND) if (folder / MANIFEST).is_file() else {}
    made_for = manifest.get("base_fingerprint")
    if base_fingerprint and made_for and made_for != base_fingerprint:
        raise CompatibilityError(
            "the expert was trained on another base",
            path=folder,
            field="base_fingerprint",
            expected=base_fingerprint[:12],
            got=made_for[:12],
            hint="compose it with its own base, or train it again on this one",
        )
    return StoredExpert(read_adapter(folder, decoder), manifest)
