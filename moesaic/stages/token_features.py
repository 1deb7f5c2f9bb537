"""What a router reads that decides before every token: the base's states as they run along the rows it learns from.

Knows nothing about routers: of each row, the feature as it stands before some of the tokens of its response.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from moesaic.config import Feature
from moesaic.data.batches import Tokens, pad
from moesaic.model.decoder import Decoder

POINTS = 8
"""Tokens of a row that a router learns to decide about, evenly spaced from the first of the response to its last."""
BATCH = 32


@torch.no_grad()
def token_features(feature: Feature, base: Decoder, rows: list[Tokens]) -> Float[Tensor, "n d"]:
    """The feature of all that stands before each of those tokens, row after row; a short response has fewer."""
    found: list[Tensor] = []
    depth = len(base.layers) if feature.depth is None else feature.depth
    for start in range(0, len(rows), BATCH):
        some = rows[start : start + BATCH]
        x, _ = base.run(base.embed_tokens(pad(some).ids), None, range(depth), None)
        x = base.norm(x) if feature.depth is None else x
        so_far = torch.arange(1, x.shape[1] + 1)[:, None]
        x = x if feature.pool == "last" else x.cumsum(1) / so_far
        found += [x[place, points_of(row)] for place, row in enumerate(some)]
    return torch.cat(found)


def points_of(row: Tokens) -> list[int]:
    """The places in a row behind which a token of the response stands, some of them where they are many."""
    first, last = row.prompt - 1, len(row.ids) - 2
    return sorted({first + (last - first) * point // (POINTS - 1) for point in range(POINTS)})
