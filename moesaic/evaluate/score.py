"""Nats of every row under one contender: what gives logits, and for each row the weights of the experts in it.

Knows nothing about who the contender is or what its numbers will be compared with.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from moesaic.data.batches import Tokens, by_length, pad
from moesaic.evaluate.statistics import Scores
from moesaic.model.decoder import Decoder
from moesaic.ops.losses import UNSCORED, token_nll
from moesaic.routing import Gates

Logits = Callable[[Int[Tensor, "b t"], Gates | None], Float[Tensor, "b t v"]]
"""Whole sequences, and the gates of their rows -> next-token logits, as a mixture's `score` gives them."""


def logits_of(decoder: Decoder) -> Logits:
    """Those of a decoder, with or without experts in its slots."""
    return lambda ids, gates: decoder(ids, None, gates).logits


@torch.inference_mode()
def score(logits: Logits, rows: dict[str, list[Tokens]], weights: Float[Tensor, "n e"] | None, batch: int) -> Scores:
    """Score the rows of all domains, in their order. `weights`: of the experts; None: there are none, or they are
    decided anew before every token.

    Only what follows the prompt is scored. Rows of like length share a batch, which changes nothing but the time.
    """
    every = [row for some in rows.values() for row in some]
    nats, tokens = np.zeros(len(every)), np.zeros(len(every))
    for chosen in by_length([len(row.ids) for row in every], batch):
        padded = pad([every[i] for i in chosen])
        gates = None if weights is None else Gates.of(weights[chosen])
        loss = token_nll(logits(padded.ids, gates), padded.targets)
        nats[chosen] = loss.double().sum(1).numpy()
        tokens[chosen] = (padded.targets != UNSCORED).sum(1).numpy()
    domains = [domain for domain, some in rows.items() for _ in some]
    return Scores(nats, tokens, domains, [row.group for row in every])
