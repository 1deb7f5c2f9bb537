"""LoRA of gate and of up of sparse experts as LoRA of both together, the same function.

Knows nothing about files: programs that hold the two as one matrix have one pair for them.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from moesaic.adapters.lora import LoRA
from moesaic.adapters.sparse_experts import HALVES, WHOLE, placed

Pair = tuple[Tensor, Tensor]


def fused(lora: LoRA) -> LoRA:
    """Join the pairs of gate and up of each sparse expert: A one below the other, B in blocks, zero outside them.

    All experts of a layer get one rank and one scale: rows of zeros fill the smaller ranks, and B takes scales that
    differ.
    """
    pairs, alphas = dict(lora.pairs), dict(lora.alphas)
    for experts, names in placed(lora.pairs).items():
        if not names.keys() & {*HALVES}:
            continue
        numbers = sorted({number for name in (WHOLE, *HALVES) for number in names.get(name, {})})
        scales = {lora.scale_of(path) for name in (WHOLE, *HALVES) for path in names.get(name, {}).values()}
        scale = scales.pop() if len(scales) == 1 else 1.0
        made = {number: joined(lora, names, number, scale) for number in numbers}
        rank = max(len(a) for a, _ in made.values())
        for path in [path for name in HALVES for path in names.get(name, {}).values()]:
            pairs.pop(path)
            alphas.pop(path, None)
        for number, pair in made.items():
            path = f"{experts}.{number}.{WHOLE}"
            a, b = (torch.cat([part, part.new_zeros(rank - len(part), part.shape[1])]) for part in pair)
            pairs[path], alphas[path] = (a, b), scale * rank
    return replace(lora, pairs=pairs, alphas={path: alpha for path, alpha in alphas.items() if alpha != lora.alpha})


def joined(lora: LoRA, names: Mapping[str, Mapping[int, str]], number: int, scale: float) -> Pair:
    """The pairs of one expert as one pair of this scale."""
    left, right = [], []
    for name in (WHOLE, *HALVES):
        if number in names.get(name, {}):
            path = names[name][number]
            a, b = lora.pairs[path]
            none = torch.zeros_like(b)
            wide = {WHOLE: [b], HALVES[0]: [b, none], HALVES[1]: [none, b]}[name]
            left.append(a)
            right.append(torch.cat(wide, 1) * (lora.scale_of(path) / scale))
    return torch.cat(left), torch.cat(right)
