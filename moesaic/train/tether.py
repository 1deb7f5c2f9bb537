"""A tether: it keeps an expert near its base on neutral text, while the expert learns from its own rows.

Knows nothing about recipes, or where neutral text comes from.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from moesaic.data.batches import Batch, Schedule, Tokens, pad
from moesaic.hardware import Compute
from moesaic.kinds.gates import GatesFor, plain
from moesaic.model.decoder import Decoder
from moesaic.ops.losses import divergence

EVERY = 4
"""One batch in so many, the last of them, comes with neutral text, whose divergence then counts so many times."""
LENGTH = 64
"""The most tokens of a neutral text."""

Loss = Callable[[Batch], tuple[Tensor, int]]


class Tethered(NamedTuple):
    """A batch of an expert's own rows, and of neutral text, if it comes with some."""

    own: Batch
    neutral: Batch | None


@dataclass(frozen=True)
class Tether:
    """Adds to a loss `weight` times the mean divergence KL(base || expert) of the next tokens of neutral text.

    `decoder`, `gates`: the expert in training; `base` is read only. Distillation from the model before the training, as
    in arXiv 1606.09282, equation 3, but on text that is no expert's.
    """

    decoder: Decoder
    gates: GatesFor
    base: Decoder
    rows: Schedule[Tokens]
    weight: float
    products: Compute

    def beside(
        self, batch: Callable[[int], Batch], loss: Loss
    ) -> tuple[Callable[[int], Tethered], Callable[[Tethered], tuple[Tensor, int]]]:
        """Own batches, every `EVERY`th with neutral text, and their loss with the divergence."""

        def drawn(number: int) -> Tethered:
            turn, rest = divmod(number, EVERY)
            if rest < EVERY - 1:
                return Tethered(batch(number), None)
            return Tethered(batch(number), pad(self.rows(turn), score_prompt=True).on(self.products.device))

        def tethered(given: Tethered) -> tuple[Tensor, int]:
            total, count = loss(given.own)
            if given.neutral is not None:
                total = total + EVERY * self.weight * count * self.divergence(given.neutral)
            return total, count

        return drawn, tethered

    def divergence(self, batch: Batch) -> Float[Tensor, ""]:
        """The mean over all tokens of a batch."""
        lower, dtype = self.products.dtype != torch.float32, self.products.dtype
        at = batch.scored.at.to(batch.ids.device, non_blocking=True)
        with torch.autocast(batch.ids.device.type, dtype if lower else None, enabled=lower):
            with torch.no_grad():
                known = states(self.base, batch, plain)[at]
            found = states(self.decoder, batch, self.gates)[at]
            return divergence(self.base.lm_head, known, self.decoder.lm_head, found)


def states(decoder: Decoder, batch: Batch, gates: GatesFor) -> Float[Tensor, "p d"]:
    """The states that give logits, position after position."""
    x, layers = decoder.embed_tokens(batch.ids), range(len(decoder.layers))
    return decoder.top(decoder.run(x, None, layers, gates(len(batch.ids)))[0]).flatten(0, 1)
