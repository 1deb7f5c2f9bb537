"""Merging: weights + weights -> one dense model, the control that a mixture has to beat.

Knows nothing about routers or files.
"""

from collections.abc import Sequence

import torch

from moesaic.adapters import LoRA, merge
from moesaic.adapters.blocks import graft, mean_of
from moesaic.adapters.feedforward import FFN
from moesaic.model.decoder import Decoder


def average(decoder: Decoder, experts: list[LoRA]) -> Decoder:
    """The base with the mean of all experts' changes added to its weights, in place.

    At site `linear` a mixture with uniform weights computes the same function: sum_e (1/E) B_e A_e is linear.
    """
    merge(decoder, experts, [1 / len(experts)] * len(experts))
    return decoder


def average_blocks(decoder: Decoder, experts: Sequence[FFN]) -> Decoder:
    """The base with the mean of all experts' feed-forward blocks in the place of its own, in place.

    No identity: a block is not linear in its matrices, so uniform weights compute something else.
    """
    graft(decoder, mean_of(decoder, experts))
    return decoder


def average_models(decoder: Decoder, experts: Sequence[Decoder]) -> Decoder:
    """The mean of whole models of one shape, in place of a decoder that is none of them."""
    with torch.no_grad():
        for name, weight in decoder.named_parameters():  # a tied head is there once
            weight.zero_()
            for expert in experts:
                weight.add_(expert.get_parameter(name), alpha=1 / len(experts))
    return decoder
