"""Arms: the architectures that a study compares, one row each.

An arm changes the configuration of a dense decoder; knows nothing about data or training.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from moesaic.config import DecoderConfig
from moesaic.lab.equal_cost import at_flops, at_parameters, multiple
from moesaic.ops.counts import counts_of, training_flops

EXPERTS, CHOSEN = 8, 2

Balance = Literal["", "loss", "sign", "quantile"]
"""How the experts of a sparse arm are balanced: by a loss, or by the bias of their choice, moved by signs of counts or
to quantiles of scores; "": not at all.
"""


@dataclass(frozen=True)
class Arm:
    """An architecture: what it is, and the change of a dense decoder's configuration that makes it."""

    name: str
    what: str
    changes: Callable[[DecoderConfig], DecoderConfig]
    balance: Balance = ""


def unchanged(config: DecoderConfig) -> DecoderConfig:
    return config


def with_heads(filling: Any) -> Callable[[DecoderConfig], DecoderConfig]:
    return lambda config: replace(config, head_filling=filling, family="moesaic")


def sparse(**routing: Any) -> Callable[[DecoderConfig], DecoderConfig]:
    """8 experts, of which a token passes 2, with as many operations for a token as the dense arm."""

    def changes(config: DecoderConfig) -> DecoderConfig:
        wide = replace(config, num_experts=EXPERTS, experts_per_token=CHOSEN, **routing)
        return at_flops(wide, training_flops(config, 0), 0)  # attention is the same

    return changes


def as_large_as_dense(config: DecoderConfig) -> DecoderConfig:
    return at_parameters(sparse(family="mixtral")(config), counts_of(config).total)


def half_ffn(config: DecoderConfig) -> DecoderConfig:
    return replace(config, intermediate_size=multiple(config.intermediate_size / 2))


BIASED: dict[str, Any] = {"family": "moesaic", "router_scores": "sigmoid", "balance_bias": True}

ROWS = (
    Arm("dense", "a plain Llama", unchanged),
    Arm("head_mixer", "one layer with SiLU for all heads, before the output projection", with_heads("mixer")),
    Arm("head_mixer_residual", "the same beside the heads; begins as the identity", with_heads("residual_mixer")),
    Arm("head_gate", "a sigmoid gate on each head, before the output projection", with_heads("gate")),
    Arm("moe", "8 experts, 2 for a token, softmax, balanced by a loss", sparse(family="mixtral"), "loss"),
    Arm(
        "moe_small",
        "the same with as many parameters as the dense arm, inactive ones included",
        as_large_as_dense,
        "loss",
    ),
    Arm("moe_bias", "`moe` with sigmoid scores, balanced by the signs of counts", sparse(**BIASED), "sign"),
    Arm("moe_quantile", "`moe` with sigmoid scores, balanced by quantiles of the scores", sparse(**BIASED), "quantile"),
    Arm("half_ffn", "a plain Llama with half the ffn: what a study must find to be worse", half_ffn),
)

ARMS = {arm.name: arm for arm in ROWS}
"""Name of an arm -> the arm."""
