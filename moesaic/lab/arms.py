"""Arms: the architectures that a study compares, one row each.

An arm changes the configuration of a dense decoder; knows nothing about data or training.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from moesaic.config import DecoderConfig

MULTIPLE = 8
"""Widths of ffns are multiples of it: 16 bytes in bfloat16, as grouped products need."""

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


def multiple(width: float) -> int:
    """The nearest width that grouped products accept."""
    return max(1, round(width / MULTIPLE)) * MULTIPLE


def unchanged(config: DecoderConfig) -> DecoderConfig:
    return config


def with_heads(filling: Any) -> Callable[[DecoderConfig], DecoderConfig]:
    return lambda config: replace(config, head_filling=filling, family="moesaic")


def sparse(**routing: Any) -> Callable[[DecoderConfig], DecoderConfig]:
    """8 experts, of which a token passes 2 that are together as wide as the dense ffn."""

    def changes(config: DecoderConfig) -> DecoderConfig:
        width = multiple(config.intermediate_size / CHOSEN)
        return replace(config, intermediate_size=width, num_experts=EXPERTS, experts_per_token=CHOSEN, **routing)

    return changes


def half_ffn(config: DecoderConfig) -> DecoderConfig:
    return replace(config, intermediate_size=multiple(config.intermediate_size / 2))


BIASED: dict[str, Any] = {"family": "moesaic", "router_scores": "sigmoid", "balance_bias": True}

ROWS = (
    Arm("dense", "a plain Llama", unchanged),
    Arm("head_mixer", "one layer with SiLU for all heads, before the output projection", with_heads("mixer")),
    Arm("head_mixer_residual", "the same beside the heads; begins as the identity", with_heads("residual_mixer")),
    Arm("head_gate", "a sigmoid gate on each head, before the output projection", with_heads("gate")),
    Arm("moe", "8 experts, 2 for a token, softmax, balanced by a loss", sparse(family="mixtral"), "loss"),
    Arm("moe_bias", "the same with sigmoid scores, balanced by the signs of counts", sparse(**BIASED), "sign"),
    Arm("moe_quantile", "the same, balanced by quantiles of the scores", sparse(**BIASED), "quantile"),
    Arm("half_ffn", "a plain Llama with half the ffn: what a study must find to be worse", half_ffn),
)

ARMS = {arm.name: arm for arm in ROWS}
"""Name of an arm -> the arm."""
