"""What routers read: a batch of prompts, and the states of the base pooled over each prompt's own tokens.

Knows nothing about routers. Padding never counts: a row alone and in a batch read the same.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moesaic.config import Feature
from moesaic.model.decoder import Decoder
from moesaic.routing import Gates


@dataclass(frozen=True)
class Prompts:
    """A right-padded batch of prompts: token ids, how many of them are real, and the texts."""

    ids: Int[Tensor, "b t"]
    lengths: Int[Tensor, " b"]
    texts: list[str]

    @staticmethod
    def pad(rows: list[list[int]], texts: list[str], device: torch.device | None = None) -> "Prompts":
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
        return Prompts(ids, torch.tensor([len(row) for row in rows], device=device), texts)


def read(feature: Feature, decoder: Decoder, num_experts: int, prompts: Prompts) -> Float[Tensor, "b d"] | list[str]:
    """The feature of each prompt under the base alone (every expert gated off)."""
    return read_all([feature], decoder, num_experts, prompts)[0]


def read_all(
    features: list[Feature], decoder: Decoder, num_experts: int, prompts: Prompts
) -> list[Float[Tensor, "b d"] | list[str]]:
    """Several features from one pass of the base, no deeper than the deepest of them."""
    blocks, found = len(decoder.layers), dict[Feature, Tensor | list[str]]()
    x = decoder.embed_tokens(prompts.ids)
    gates, at = Gates.one(-1, len(x), num_experts, x), 0
    for feature in sorted(features, key=lambda f: blocks + 1 if f.depth is None else f.depth):
        depth = blocks if feature.depth is None else feature.depth
        x, _ = decoder.run(x, None, range(at, depth), gates)
        at, top = depth, decoder.norm(x) if feature.depth is None else x
        found[feature] = prompts.texts if feature.source == "text" else pool(top, prompts.lengths, feature)
    return [found[feature] for feature in features]


def pool(x: Float[Tensor, "b t d"], lengths: Int[Tensor, " b"], feature: Feature) -> Float[Tensor, "b d"]:
    """Mean over the real tokens, or the last of them."""
    if feature.pool == "last":
        return x[torch.arange(len(x), device=x.device), lengths - 1]
    real = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
    return (x * real[..., None]).sum(1) / lengths[:, None]
