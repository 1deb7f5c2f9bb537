"""Layers that recompute their activations in the backward pass instead of keeping them: less memory, more time.

Gradients stay the same to the bit. Knows nothing about training.
"""

import weakref
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from moesaic.model.decoder import Decoder
from moesaic.model.encoder import Encoder


def recompute(body: Decoder | Encoder) -> None:
    """Let each layer keep its input alone."""
    for layer in body.layers:
        layer.forward = partial(recomputed, weakref.ref(layer))  # a layer that held itself would outlive the model


def recomputed(layer: weakref.ref[nn.Module], *given: Any) -> Any:
    own: Any = layer()
    return checkpoint(type(own).forward, own, *given, use_reentrant=False)
