"""How a model computes while it is trained: what it keeps for the backward pass, and whether it is compiled.

Knows nothing about losses or optimisers; the weights keep their names, their type and their values.
"""

import ctypes
import sys
from typing import Any

from moesaic.model.decoder import Decoder
from moesaic.model.encoder import Encoder
from moesaic.model.recomputing import recompute
from moesaic.sections.training import Pretrain, Train

RETURNED = 8
"""Layers after which freed pages are returned. Small blocks in the holes of large ones keep glibc from filling these
again: half of a training's memory would be holes."""


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
