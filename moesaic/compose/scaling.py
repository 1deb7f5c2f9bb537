"""Memory and traffic of each device while several pretrain one decoder, as formulas of its sizes.

Knows nothing about processes; a test measures two of them against these formulas.
"""

from dataclasses import dataclass

import torch

from moesaic.adapters.slots import slots_of
from moesaic.config import DecoderConfig
from moesaic.model.decoder import Decoder
from moesaic.nn import SparseFFN
from moesaic.sections.training import Parallel

WIDTH = 4
"""Bytes of a weight, a gradient, a moment and a state that travels: float32."""


@dataclass(frozen=True)
class Sizes:
    """Parameters of a decoder: outside of its blocks (`ends`), in a block without experts, in a block's experts.

    `travelling`: values that a token sends to experts and gets back, in all layers together, in a forward pass.
    """

    ends: int
    block: int
    blocks: int
    experts: int = 0
    travelling: int = 0

    @property
    def parameters(self) -> int:
        return self.ends + self.blocks * (self.block + self.experts)


def sizes_of(config: DecoderConfig) -> Sizes:
    """The sizes of a decoder, whose last block stands for all."""
    with torch.device("meta"):
        decoder = Decoder(config)

    def count(module: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    layers, last = len(decoder.layers), decoder.layers[-1]
    experts = sum(count(layer.experts) for layer in slots_of(last, SparseFFN).values())
    travelling = 2 * layers * config.experts_per_token * config.hidden_size if experts else 0
    ends = count(decoder) - sum(count(layer) for layer in decoder.layers)
    return Sizes(ends, count(last) - experts, layers, experts, travelling)


@dataclass(frozen=True)
class Share:
    """Bytes of one device: held between steps with the gradients, gathered at most beside them, sent in a step.

    `scattered`: those of `sent` by which gradients are summed and scattered.
    """

    weights: int
    gradients: int
    moments: int
    gathered: int
    sent: int
    scattered: int = 0

    @property
    def held(self) -> int:
        return self.weights + self.gradients + self.moments


def share(sizes: Sizes, parallel: Parallel, devices: int, tokens: int, micro_batches: int = 1) -> Share:
    """The share of one of so many devices, which reads `micro_batches` of `tokens` tokens in a step.

    Of S bytes, a ring sends S (n - 1) / n to gather or to scatter them, and twice as many to sum them in n devices.
    Activations come on top. gloo, which CPUs use, sums where it should scatter, and sends `scattered` once more.
    """
    total = WIDTH * sizes.parameters
    if parallel == "ddp":
        return Share(total, total, 2 * total, 0, _ring(2 * total, devices))
    own = -(-total // devices)
    stay = sizes.experts if parallel == "ep" else 0  # weights that do not travel
    block, ends = WIDTH * (sizes.block + sizes.experts - stay), WIDTH * sizes.ends
    # Blocks are gathered for both passes, the ends once, and all gradients are scattered. The block in use and the
    # next one are whole at the same time, and so are the gradients of one.
    weights = micro_batches * _ring(2 * sizes.blocks * block + ends, devices)
    gradients = micro_batches * _ring(sizes.blocks * block + ends, devices)
    # A token's states travel there and back in the forward pass, their gradients in the backward pass.
    states = micro_batches * _ring(2 * WIDTH * sizes.travelling * tokens, devices) if stay else 0
    return Share(own, own, 2 * own, ends + 3 * block, weights + gradients + states, gradients)


def _ring(size: int, devices: int) -> int:
    return size * (devices - 1) // devices
