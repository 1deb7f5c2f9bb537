"""Layouts of the experts of sparse models on disk: a tensor for each matrix, or those of a layer packed in two.

Works on tensors under the names of their family. Knows nothing about files.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from moesaic.interop.families import FAMILIES

_EXPERT = re.compile(r"(model\.layers\.\d+\.mlp)\.experts\.(\d+)\.(gate|up|down)_proj\.weight")


def plain(family: str, name: str) -> str:
    """A name of the family in the words that most families share, `mlp` and `gate_proj`."""
    for ours, theirs in FAMILIES[family].pieces:
        name = name.replace(theirs, ours)
    return name


def packed(family: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Pack the experts of each layer: `gate_up_proj` (E, 2I, D), gate first, and `down_proj` (E, D, I)."""
    found: dict[str, Tensor] = {}
    experts: dict[str, dict[tuple[int, str], Tensor]] = {}
    for name, tensor in tensors.items():
        own = plain(family, name)
        if match := _EXPERT.fullmatch(own):
            block, expert, kind = match.groups()
            experts.setdefault(block, {})[int(expert), kind] = tensor
        else:
            found[own] = tensor
    for block, parts in experts.items():
        order = sorted({expert for expert, _ in parts})
        both = [torch.cat([parts[expert, "gate"], parts[expert, "up"]]) for expert in order]
        found[f"{block}.experts.gate_up_proj"] = torch.stack(both)
        found[f"{block}.experts.down_proj"] = torch.stack([parts[expert, "down"] for expert in order])
    return found
