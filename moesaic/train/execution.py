"""How a decoder computes while it is trained: which type its products have, what it keeps for the backward pass.

Knows nothing about losses or optimisers; the weights keep their names, their type and their values.
"""

from functools import partial

import torch
from torch.utils.checkpoint import checkpoint

from moesaic.model.decoder import Decoder
from moesaic.sections.training import Pretrain

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
UNITS = ("avx512_bf16", "amx_bf16", "bf16")
"""Capabilities of processors that multiply in bfloat16, as torch names them."""


def type_of(word: str) -> torch.dtype:
    """The type of a recipe's `dtype`; `auto` is bfloat16 on a processor that has units for it."""
    if word != "auto":
        return TYPES[word]
    found = torch.cpu.get_capabilities()
    return torch.bfloat16 if any(found.get(unit) for unit in UNITS) else torch.float32


def arrange(decoder: Decoder, settings: Pretrain) -> Decoder:
    """Make each layer compute as the settings say; call this before the decoder is spread over processes."""
    for layer in decoder.layers:
        if settings.recompute:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        if settings.compile:
            layer.compile()
    return decoder
