"""What a model weighs and what it needs while it works: parameters by part, cache, activations, optimiser.

Formulas over configs and shapes; knows nothing about files, nor which model is an expert.
"""

import math
from collections.abc import Callable, Mapping

import torch

from moesaic.interop.outline import PARTS, Config, Outline, Shape, part_of
from moesaic.nn.rope import FIRST

MOMENTS = 3
"""What AdamW keeps beside a weight that it trains: its gradient and two moments."""

LIBRARIES = 32_000_000
"""What a host counts on top, once libraries compute: pages of their code, their heap. 18 MB were seen."""

Types = Callable[[torch.dtype], torch.dtype]
"""The type of a tensor as stored -> the type it is computed in."""


def by_part(model: Outline, types: Types, unstored: torch.dtype) -> dict[str, tuple[int, int]]:
    """Parameters and bytes of each part; those of a published size count as `unstored`."""
    found = dict.fromkeys(PARTS, (0, 0))
    for name, shape in model.shapes.items():
        count, width = math.prod(shape), types(model.stored.get(name, unstored)).itemsize
        parameters, size = found[part_of(name)]
        found[part_of(name)] = parameters + count, size + count * width
    return {part: both for part, both in found.items() if both[0]}


def rotations(config: Config, width: int) -> int:
    """Bytes of the tables of rotary positions, cosine and sine, of global layers and of local ones."""
    return config.rotary_width * min(config.context, FIRST) * width


def cache(config: Config, rows: int, tokens: int, width: int) -> int:
    """Bytes of keys and values: room for every token in every layer, those with a window too. An encoder has none."""
    return config.num_layers * config.cached_width * rows * tokens * width


def activations(config: Config, rows: int, tokens: int, width: int) -> int:
    """Bytes at the height of reading `rows` prompts of `tokens` each; an estimate.

    In one block, three states of the hidden size (x, its norm, the sum), and the larger of: queries, keys, values and
    what attention gives, queries and keys twice as they are turned; or gate, up, its activation and their product. Then
    the logits behind the last token of each row.
    """
    attention, ffn = 3 * config.query_width + 3 * config.key_width, config.ffn_states * config.ffn_width
    return rows * tokens * (3 * config.hidden_size + max(attention, ffn)) * width + rows * config.vocab_size * width


def saved_activations(config: Config, rows: int, tokens: int, width: int) -> int:
    """Bytes that a training step keeps for its backward pass, where every linear's input is kept; an estimate.

    In every block: x and its norm, twice each; queries, keys and values, turned queries and keys, and what attention
    gives; gate, up, its activation and their product. Then the logits, their softmax and its gradient.
    """
    attention, ffn = 3 * config.query_width + 3 * config.key_width, config.ffn_states * config.ffn_width
    block = 4 * config.hidden_size + attention + ffn
    return rows * tokens * (config.num_layers * block + 3 * config.vocab_size) * width


def optimiser(trained: int, width: int) -> int:
    """Bytes beside the weights while `trained` parameters are trained."""
    return MOMENTS * trained * width


def pairs(shapes: Mapping[str, Shape]) -> int:
    """Parameters of low-rank pairs, each a rank and the widths (r, i, o)."""
    return sum(rank * (inner + outer) for rank, inner, outer in shapes.values())


def stacked(experts: list[Mapping[str, Shape]]) -> int:
    """Parameters of each expert's place in the stacks beside the linears: of the largest rank that any has there.

    An expert that does not touch a linear has a place there all the same.
    """
    largest: dict[str, Shape] = {}
    for expert in experts:
        for path, shape in expert.items():
            largest[path] = max(shape, largest.get(path, shape))
    return pairs(largest)
