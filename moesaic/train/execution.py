"""How a model computes while it is trained: which type its products have, what it keeps for the backward pass.

Knows nothing about losses or optimisers; the weights keep their names, their type and their values.
"""

import ctypes
import sys
from typing import Any

import torch

from moesaic.model.decoder import Decoder
from moesaic.model.encoder import Encoder
from moesaic.model.recomputing import recompute
from moesaic.sections.training import Pretrain, Train

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
UNITS = ("avx512_bf16", "amx_bf16", "bf16")
"""Capabilities of processors that multiply in bfloat16, as torch names them."""

RETURNED = 8
"""Layers after which freed pages are returned. Small blocks in the holes of large ones keep glibc from filling these
again: half of a training's memory would be holes."""


def type_of(word: str) -> torch.dtype:
    """The type of a recipe's `dtype`; `auto` is bfloat16 on a processor that has units for it."""
    if word != "auto":
        return TYPES[word]
    found = torch.cpu.get_capabilities()
    return torch.bfloat16 if any(found.get(unit) for unit in UNITS) else torch.float32


def arrange(body: Decoder | Encoder, settings: Train) -> None:
    """Let each layer recompute its activations if the settings say so, and return freed pages while layers compute."""
    if settings.recompute:
        recompute(body)
    for layer in body.layers[RETURNED - 1 :: RETURNED]:
        layer.register_forward_hook(return_pages)


def return_pages(*_: Any) -> None:
    """Let glibc return its free pages to the system; does nothing elsewhere."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None:
        trim(0)


def compile_layers(decoder: Decoder, settings: Pretrain) -> None:
    """Compile each layer if the settings say so; call this after `arrange`, before processes share the decoder."""
    if settings.compile:
        for layer in decoder.layers:
            layer.compile()
