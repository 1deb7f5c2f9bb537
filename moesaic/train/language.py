"""Language modelling: the loss of a decoder under fixed gates, and its mean over held-out rows.

Knows nothing about optimisers or where rows come from.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from moesaic.data.batches import Batch, Tokens, by_length, pad
from moesaic.hardware import HOST, Compute
from moesaic.kinds.gates import GatesFor
from moesaic.model.decoder import Scored

Model = Callable[..., Scored]
"""A decoder, alone or as several processes share it."""


def loss_of(
    decoder: Model, gates: GatesFor, dtype: torch.dtype = torch.float32
) -> Callable[[Batch], tuple[Tensor, int]]:
    """The summed loss of a batch, and the number of scored tokens; `dtype`: the type of matrix products."""
    lower = dtype != torch.float32

    def loss(batch: Batch) -> tuple[Tensor, int]:
        targets = batch.scored
        with torch.autocast(batch.ids.device.type, dtype if lower else None, enabled=lower):
            scored = decoder(batch.ids, None, gates(len(batch.ids)), batch.documents, targets)
        return scored.nats, len(targets.at)

    return loss


@torch.no_grad()
def mean_nats(
    decoder: Model,
    gates: GatesFor,
    rows: Sequence[Tokens],
    batch: int,
    score_prompt: bool = False,
    compute: Compute = HOST,
) -> float:
    """Nats per scored token, the logarithm of the perplexity. `compute`: the decoder's device and products."""
    loss, nats, count = loss_of(decoder, gates, compute.dtype), 0.0, 0
    for places in by_length([len(row.ids) for row in rows], batch):
        summed, terms = loss(pad([rows[place] for place in places], score_prompt).on(compute.device))
        nats, count = nats + summed.item(), count + terms
    return nats / count
