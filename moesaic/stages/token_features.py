"""Features for a router that decides before every token: the base's states along training rows.

Reads the feature of each row before some of the tokens of its response. Knows nothing about routers.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from moesaic.config import Feature
from moesaic.data.batches import Tokens, pad
from moesaic.hardware import exact
from moesaic.model.decoder import Decoder

POINTS = 8
"""The number of tokens of a row that a router is trained on, evenly spaced from the response's first to its last."""
BATCH = 32


@torch.no_grad()
def token_features(feature: Feature, base: Decoder, rows: list[Tokens]) -> Float[Tensor, "n d"]:
    """The feature of the text before each of these tokens, row after row; a short response has fewer tokens."""
    found: list[Tensor] = []
    depth = len(base.layers) if feature.depth is None else feature.depth
    for start in range(0, len(rows), BATCH):
        some = rows[start : start + BATCH]
        ids = pad(some).on(base.norm.weight.device).ids
        x, _ = base.run(base.embed_tokens(ids), None, range(depth), None)
        x = base.norm(x) if feature.depth is None else x
        x = x.to("cpu", exact(x.dtype))
        so_far = torch.arange(1, x.shape[1] + 1)[:, None]
        x = x if feature.pool == "last" else x.cumsum(1) / so_far
        found += [x[index, points_of(row)] for index, row in enumerate(some)]
    return torch.cat(found)


def points_of(row: Tokens) -> list[int]:
    """The positions before tokens of the response, evenly spaced where there are more than `POINTS`."""
    first, last = row.prompt - 1, len(row.ids) - 2
    return sorted({first + (last - first) * point // (POINTS - 1) for point in range(POINTS)})
