"""How a model computes while it is trained: what it keeps for the backward pass, and whether it is compiled.

Knows nothing about losses or optimisers; the weights keep their names, their type and their values.
"""

from moesaic.model.decoder import Decoder
from moesaic.model.encoder import Encoder
from moesaic.model.recomputing import recompute
from moesaic.sections.training import Pretrain, Train


def arrange(body: Decoder | Encoder, settings: Train) -> None:
    """Let each layer recompute its activations if the settings say so."""
    if settings.recompute:
        recompute(body)


def compile_layers(decoder: Decoder, settings: Pretrain) -> None:
    """Compile each layer if the settings say so; call this after `arrange`, before processes share the decoder."""
    if settings.compile:
        for layer in decoder.layers:
            layer.compile()
