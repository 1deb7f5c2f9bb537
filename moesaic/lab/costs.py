"""What an arm costs at one depth: its parameters by use, and the operations of training on a token.

Knows nothing about data.
"""

from dataclasses import dataclass

from moesaic.config import DecoderConfig
from moesaic.ops.counts import counts_of, training_flops


@dataclass(frozen=True)
class Costs:
    """`parameters`: all; `active`: those that one token passes; `trained`: these with the head and without the
    embedding, which tokens a parameter are counted by; `inner`: without both; `flops`: of training, for a token.
    """

    parameters: int
    active: int
    trained: int
    inner: int
    flops: float


def costs_of(config: DecoderConfig, length: int) -> Costs:
    """The costs of an architecture; attention reads half of a row of `length` tokens on average."""
    counts, table = counts_of(config), config.vocab_size * config.hidden_size
    trained = counts.active - (0 if config.tie_embeddings else table)
    return Costs(counts.total, counts.active, trained, trained - table, training_flops(config, length / 2))
