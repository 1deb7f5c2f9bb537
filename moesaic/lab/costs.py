"""What an architecture costs: its parameters by use, and the operations of training on a token.

Knows nothing about data.
"""

from dataclasses import dataclass

import torch

from moesaic.config import DecoderConfig
from moesaic.model.decoder import Decoder

PASSES = 6
"""Operations of a training step for each weight and token: a product and a sum, forward and twice backward."""


@dataclass(frozen=True)
class Costs:
    """`parameters`: all; `active`: those that one token passes; `inner`: active, without embedding and head; `trained`:
    active matrices, the head included and the embedding not; `flops`: of training, for a token.
    """

    parameters: int
    active: int
    inner: int
    trained: int
    flops: int


def costs_of(config: DecoderConfig, length: int) -> Costs:
    """Count an architecture; attention reads half of a row of `length` tokens on average."""
    with torch.device("meta"):
        weights = dict(Decoder(config).named_parameters())
    share = config.experts_per_token / config.num_experts if config.num_experts else 1.0
    parts = {
        name: (round(one.numel() * share) if ".experts." in name else one.numel()) for name, one in weights.items()
    }
    inner = {name: size for name, size in parts.items() if name.startswith("layers.")}
    head = config.vocab_size * config.hidden_size
    trained = sum(size for name, size in inner.items() if weights[name].ndim >= 2) + head
    attention = 2 * PASSES * config.num_layers * config.query_width * length // 2
    total = sum(one.numel() for one in weights.values())
    return Costs(total, sum(parts.values()), sum(inner.values()), trained, PASSES * trained + attention)
