"""What a decoder of a configuration costs: its parameters, and the operations of training it on a token.

Follows from the sizes alone; knows nothing about modules.
"""

from dataclasses import dataclass

from moesaic.config import DecoderConfig

PASSES = 6
"""Operations of a training step for a weight and a token: a product and a sum, forward and twice backward."""


MIXERS = ("mixer", "residual_mixer")


@dataclass(frozen=True)
class Counts:
    """`total`: all parameters. `active`: those that one token passes, embedding and head included. `multiplied`:
    products of one token with matrices: the head included, the embedding not, and what all heads share once for each.
    """

    total: int
    active: int
    multiplied: int


def counts_of(config: DecoderConfig) -> Counts:
    """Count the parameters of a decoder; a tied head is counted once, but multiplies."""
    d, table = config.hidden_size, config.vocab_size * config.hidden_size
    sparse = config.num_layers - len(config.dense_layers) if config.num_experts else 0
    dense = config.num_layers - sparse
    expert = 3 * d * (config.expert_size or config.intermediate_size)
    matrices = config.num_layers * attention_of(config) + dense * 3 * d * config.intermediate_size + table
    matrices += sparse * d * config.num_experts
    matrices += sparse * (3 * d * config.shared_size + d) if config.shared_size else 0
    beside = config.num_layers * vectors_of(config) + d + (0 if config.tie_embeddings else table)
    beside += sparse * config.num_experts * config.balance_bias
    beside += dense * (2 * config.intermediate_size + d) * config.mlp_bias
    every, used = (sparse * count * expert for count in (config.num_experts, config.experts_per_token))
    again = config.num_layers * (config.num_heads - 1) * config.head_dim**2 * (config.head_filling in MIXERS)
    return Counts(matrices + every + beside, matrices + used + beside, matrices + used + again)


def attention_of(config: DecoderConfig) -> int:
    """Parameters of the matrices of one attention layer, with what fills its heads."""
    d, hd = config.hidden_size, config.head_dim
    filling = d * config.num_heads * (config.head_filling == "gate") + hd * hd * (config.head_filling in MIXERS)
    return 2 * d * (config.query_width + config.key_width) + filling


def vectors_of(config: DecoderConfig) -> int:
    """Parameters of norms and biases of one layer outside its ffn."""
    d, hd = config.hidden_size, config.head_dim
    norms = (4 if config.sandwich_norms else 2) * d + 2 * hd * config.qk_norm
    biases = (config.query_width + 2 * config.key_width) * (config.qkv_bias or config.attention_bias)
    mixing = hd * (config.head_filling in MIXERS)
    return norms + biases + d * config.attention_bias + mixing


def training_flops(config: DecoderConfig, attended: float) -> float:
    """Operations of training on one token: 6 for each weight that multiplies it, and 12 for each attended token and
    value of a query. PaLM (arXiv 2204.02311), appendix B.

    `attended`: tokens that a token sees, on average: half of a row. torch's `FlopCounterMode` counts the whole row.
    """
    return PASSES * (counts_of(config).multiplied + 2 * config.num_layers * config.query_width * attended)
