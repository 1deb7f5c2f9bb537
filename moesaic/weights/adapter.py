"""LoRA experts on disk: a PEFT adapter folder, plus our manifest.

A folder without a manifest loads too, as declared but unverified. Knows nothing about training or routing.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from moesaic.adapters import LoRA
from moesaic.errors import CompatibilityError, WeightsError
from moesaic.files import MANIFEST, digest, read_json, read_manifest, write_json, write_manifest
from moesaic.weights.tensors import fingerprint, read_tensors, write_tensors

KIND = "expert"
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
FILES = (CONFIG, TENSORS)
PREFIX = "base_model.model.model."

# Variants of LoRA that change the sum it computes, with the value that means plain LoRA.
PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "use_dora": (False, None),
    "bias": ("none", None),
    "fan_in_fan_out": (False, None),
    "modules_to_save": (None, []),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "lora_bias": (False, None),
    "layer_replication": (None,),
    "trainable_token_indices": (None,),
}


@dataclass(frozen=True)
class StoredExpert:
    """An expert as read: its matrices, and what its folder says of it ({} for a foreign adapter)."""

    lora: LoRA
    manifest: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """The hash of its matrices, under the names they have on disk, and of their scale."""
        return digest([fingerprint(tensors_of(self.lora)), self.lora.rank, self.lora.alpha])

    @property
    def base_fingerprint(self) -> str | None:
        """The base it was trained for; None: declared at best, and never verified."""
        return self.manifest.get("base_fingerprint")


def save_expert(folder: Path, lora: LoRA, base_fingerprint: str, facts: dict[str, Any]) -> None:
    """Write an expert into an empty folder, as PEFT would, with its manifest."""
    tensors = tensors_of(lora)
    write_tensors(folder / TENSORS, tensors)
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": lora.targets,
        "layers_to_transform": lora.layers,
        "bias": "none",
        "inference_mode": True,
        "use_rslora": False,
        "use_dora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    write_json(folder / CONFIG, config)
    shape = {"adapter": "lora", "rank": lora.rank, "alpha": lora.alpha, "targets": lora.targets, "layers": lora.layers}
    own = {
        "kind": KIND,
        "fingerprint": StoredExpert(lora, {}).fingerprint,
        "base_fingerprint": base_fingerprint,
    }
    write_manifest(folder, {**own, **shape, "parameters": lora.num_parameters, **facts})


def tensors_of(lora: LoRA) -> dict[str, torch.Tensor]:
    """An expert's matrices as PEFT names and lays them out."""
    tensors = {}
    for path, (a, b) in lora.pairs.items():
        tensors[f"{PREFIX}{path}.lora_A.weight"] = a
        tensors[f"{PREFIX}{path}.lora_B.weight"] = b.t()
    return tensors


def load_expert(folder: Path, base_fingerprint: str | None = None) -> StoredExpert:
    """Read an expert, ours or PEFT's; where it says which base it was trained on, that must be `base_fingerprint`."""
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
    config = read_json(folder / CONFIG)
    for key, allowed in PLAIN.items():
        if config.get(key, allowed[-1]) not in allowed:
            raise WeightsError("not plain LoRA", path=folder / CONFIG, field=key, expected=allowed[0], got=config[key])
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or not isinstance(alpha, int | float):
        raise WeightsError("rank and alpha are missing", path=folder / CONFIG, field="r, lora_alpha", got=(rank, alpha))
    if config.get("use_rslora"):
        alpha *= rank**0.5  # rank-stabilised LoRA scales by alpha / sqrt(rank)
    return StoredExpert(LoRA(rank, float(alpha), read_pairs(folder / TENSORS, rank)), manifest)


def read_pairs(path: Path, rank: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """PEFT's tensors by module path; every A has its B, and both have the rank that the configuration says."""
    halves: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in read_tensors(path).items():
        module, _, half = name.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
        if not name.startswith(PREFIX) or half not in ("lora_A", "lora_B") or tensor.ndim != 2:
            raise WeightsError("not a LoRA tensor of a decoder", path=path, field=name)
        if tensor.shape[0 if half == "lora_A" else 1] != rank:
            raise WeightsError(
                "a tensor of another rank", path=path, field=name, expected=rank, got=str([*tensor.shape])
            )
        halves.setdefault(module, {})[half] = tensor.to(torch.get_default_dtype())
    for module, both in sorted(halves.items()):
        if len(both) != 2:
            raise WeightsError("half of a pair is missing", path=path, field=module, got=list(both))
    return {module: (both["lora_A"], both["lora_B"].t().contiguous()) for module, both in sorted(halves.items())}
