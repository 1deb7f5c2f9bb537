"""Nats of every row under one contender: a decoder, and for each row the weights of the experts in it.

Knows nothing about who the contender is or what its numbers will be compared with.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from moesaic.data.batches import Tokens, pad
from moesaic.evaluate.statistics import Scores
from moesaic.model.decoder import Decoder
from moesaic.ops.losses import UNSCORED, token_nll
from moesaic.routing import Gates


@torch.inference_mode()
def score(decoder: Decoder, rows: dict[str, list[Tokens]], weights: Float[Tensor, "n e"] | None, batch: int) -> Scores:
    """Score the rows of all domains, in their order. `weights`: of the experts in the decoder; None: it has none.

    Only what follows the prompt is scored. Rows of like length share a batch, which changes nothing but the time.
    """
    every = [row for some in rows.values() for row in some]
    nats, tokens = np.zeros(len(every)), np.zeros(len(every))
    order = sorted(range(len(every)), key=lambda i: len(every[i].ids))
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        padded = pad([every[i] for i in chosen])
        gates = None if weights is None else Gates.of(weights[chosen])
        loss = token_nll(decoder(padded.ids, None, gates).logits, padded.targets)
        nats[chosen] = loss.double().sum(1).numpy()
        tokens[chosen] = (padded.targets != UNSCORED).sum(1).numpy()
    domains = [domain for domain, some in rows.items() for _ in some]
    return Scores(nats, tokens, domains, [row.group for row in every])
