"""How evenly the sparse layers of a base spread the tokens of texts over their own experts.

Knows nothing about the mixture's router: these experts are the base's, without names, and decide in every layer.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch

from moesaic.data.batches import Tokens, by_length, pad
from moesaic.model.decoder import Decoder
from moesaic.ops.expert_load import least_load, max_violation


@torch.inference_mode()
def layer_utilisation(decoder: Decoder, rows: Sequence[Tokens], batch: int) -> list[dict[str, Any]]:
    """Utilisation of each sparse layer of a decoder over all tokens of these rows; [] of a dense decoder.

    Each entry: {layer, utilisation: share of the choices per expert, evenness: their entropy over ln e, 0 to 1,
    max_violation: the largest share over the mean share, less 1, least_load: the smallest over the mean}.
    """
    chosen, device = dict[int, torch.Tensor](), decoder.norm.weight.device
    for some in by_length([len(row.ids) for row in rows], batch):
        lengths = [len(rows[index].ids) - 1 for index in some]  # the decoder never reads the last token of a row
        ids = pad([rows[index] for index in some]).on(device).ids
        real = (torch.arange(ids.shape[1], device=device) < torch.tensor(lengths, device=device)[:, None]).flatten()
        for layer, routing in enumerate(decoder(ids, None, None).routings):
            if routing is not None:
                counts = (routing.weights[real] > 0).sum(0).cpu()
                chosen[layer] = chosen.get(layer, torch.zeros_like(counts)) + counts
    return [_entry(layer, counts.double()) for layer, counts in chosen.items()]


def _entry(layer: int, counts: torch.Tensor) -> dict[str, Any]:
    shares = counts / counts.sum()
    entropy = -torch.special.xlogy(shares, shares).sum().item()
    evenness = entropy / math.log(len(shares)) if len(shares) > 1 else 1.0
    loads = {"max_violation": max_violation(counts), "least_load": least_load(counts)}
    return {"layer": layer, "utilisation": shares.tolist(), "evenness": abs(evenness), **loads}
