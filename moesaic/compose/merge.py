"""Merging: weights + weights -> one dense model, the control that a mixture has to beat.

Knows nothing about routers or files.
"""

from moesaic.adapters import LoRA, merge
from moesaic.model.decoder import Decoder


def average(decoder: Decoder, experts: list[LoRA]) -> Decoder:
    """The base with the mean of all experts' changes added to its weights, in place.

    At site `linear` a mixture with uniform weights computes the same function: sum_e (1/E) B_e A_e is linear.
    """
    merge(decoder, experts, [1 / len(experts)] * len(experts))
    return decoder
