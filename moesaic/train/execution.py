"""How a decoder computes while it is trained: what it keeps for the backward pass, and whether it is compiled.

Knows nothing about losses or optimisers; the weights keep their names, their type and their values.
"""

from functools import partial

from torch.utils.checkpoint import checkpoint

from moesaic.model.decoder import Decoder
from moesaic.sections.training import Pretrain


def arrange(decoder: Decoder, settings: Pretrain) -> Decoder:
    """Make each layer compute as the settings say; call this before the decoder is spread over processes."""
    for layer in decoder.layers:
        if settings.recompute:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        if settings.compile:
            layer.compile()
    return decoder
