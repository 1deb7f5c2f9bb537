"""Formulas for the memory of a model: parameters by part, cache, activations, optimiser.

Knows configs and shapes, but nothing about files, nor which model is an expert.
"""

import math
from collections.abc import Callable, Mapping

import torch

from moesaic.adapters.slots import slots_of
from moesaic.interop.outline import PARTS, Config, Outline, Shape, part_of
from moesaic.interop.quantised import packed_bytes, unpacking_bytes
from moesaic.nn import Linear
from moesaic.nn.rope import FIRST

BESIDE = 3
"""Values beside each trained weight between two steps: two moments of AdamW, and the best value so far."""

LIBRARIES = 32_000_000
"""Bytes that libraries add on a host once they compute: pages of code and heap. Measured: 18 MB."""

Types = Callable[[torch.dtype], torch.dtype]
"""Stored type of a tensor -> the type in which it is computed."""


def by_part(model: Outline, types: Types, unstored: torch.dtype, bits: int | None = None) -> dict[str, tuple[int, int]]:
    """Parameters and bytes of each part; tensors of a published size count as `unstored`. `bits`: see `load_base`."""
    found, packed = dict.fromkeys(PARTS, (0, 0)), matrices(model) if bits else {}
    for name, shape in model.shapes.items():
        count, width = math.prod(shape), types(model.stored.get(name, unstored)).itemsize
        parameters, size = found[part_of(name)]
        own = packed_bytes(shape, bits, width) if bits and name in packed else count * width
        found[part_of(name)] = parameters + count, size + own
    return {part: both for part, both in found.items() if both[0]}


def matrices(model: Outline) -> dict[str, int]:
    """Values of each matrix that can be packed, by its name."""
    found = {f"{path}.weight" for path in slots_of(model.module, Linear) if path.startswith("layers.")}
    return {name: math.prod(shape) for name, shape in model.shapes.items() if name in found}


def unpacking(model: Outline, bits: int | None, width: int) -> int:
    """Bytes of the largest matrix while it is unpacked; 0 where none is packed."""
    return unpacking_bytes(max(matrices(model).values()), bits, width) if bits else 0


def rotations(config: Config, width: int) -> int:
    """Bytes of the tables of rotary positions, cosine and sine, of global layers and of local ones."""
    return config.rotary_width * min(config.context, FIRST) * width


def cache(config: Config, rows: int, tokens: int, width: int) -> int:
    """Bytes of keys and values of every token in every layer, layers with a window included. An encoder has none."""
    return config.num_layers * config.cached_width * rows * tokens * width


def activations(config: Config, rows: int, tokens: int, width: int) -> int:
    """Peak bytes while `rows` prompts of `tokens` each are read; an estimate.

    In one block, three states of the hidden size (x, its norm, the sum), and the larger of: queries, keys, rotated
    queries and keys, values and the output of attention; or gate, up, its activation and their product. Then the logits
    after the last token of each row.
    """
    attention, ffn = 3 * config.query_width + 3 * config.key_width, config.ffn_states * config.ffn_width
    return rows * tokens * (3 * config.hidden_size + max(attention, ffn)) * width + rows * config.vocab_size * width


def pairs(shapes: Mapping[str, Shape]) -> int:
    """Parameters of low-rank pairs, each a rank and the widths (r, i, o)."""
    return sum(rank * (inner + outer) for rank, inner, outer in shapes.values())


def stacked(experts: list[Mapping[str, Shape]]) -> int:
    """Parameters of one expert in the stacks beside the linears, padded to the largest rank at each linear.

    Every expert takes this much, also beside linears that it does not change.
    """
    largest: dict[str, Shape] = {}
    for expert in experts:
        for path, shape in expert.items():
            largest[path] = max(shape, largest.get(path, shape))
    return pairs(largest)
