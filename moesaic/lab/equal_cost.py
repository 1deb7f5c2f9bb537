"""Sizes of arms that cost the same: another width of the ffn, at equal parameters or at equal active operations.

Knows nothing about data or training.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from moesaic.config import DecoderConfig
from moesaic.errors import RecipeError
from moesaic.ops.counts import counts_of, training_flops

MULTIPLE = 8
"""Widths of ffns are multiples of it: 16 bytes in bfloat16, as grouped products need."""


def multiple(width: float) -> int:
    """The nearest width that grouped products accept."""
    return max(1, round(width / MULTIPLE)) * MULTIPLE


def at_parameters(config: DecoderConfig, total: int) -> DecoderConfig:
    """The arm with the ffn whose number of parameters, inactive ones included, is nearest to `total`."""
    return resized(config, total, lambda one: counts_of(one).total)


def at_flops(config: DecoderConfig, flops: float, attended: float) -> DecoderConfig:
    """The arm with the ffn whose operations for a token, see `training_flops`, are nearest to `flops`."""
    return resized(config, flops, lambda one: training_flops(one, attended))


def resized(config: DecoderConfig, cost: float, cost_of: Callable[[DecoderConfig], float]) -> DecoderConfig:
    """The configuration with the ffn of the width that costs nearest to this; RecipeError where even the least costs
    more. Costs are linear in the width, and widths are those that grouped products accept.
    """
    field = "expert_size" if config.expert_size else "intermediate_size"

    def wide(width: int) -> DecoderConfig:
        changed: dict[str, Any] = {field: width}
        return replace(config, **changed)

    least, step = cost_of(wide(MULTIPLE)), cost_of(wide(2 * MULTIPLE)) - cost_of(wide(MULTIPLE))
    if cost < least:
        expected, got = f"at least {least:,}, with an ffn of width {MULTIPLE}", f"{cost:,}"
        raise RecipeError("an arm cannot be so small", field=field, expected=expected, got=got)
    return wide(multiple(MULTIPLE * (1 + (cost - least) / step)))
