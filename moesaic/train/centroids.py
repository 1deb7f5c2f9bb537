"""A router of layers that begins as centroids would decide, rather than at random.

Knows nothing about training: it fills in the numbers of a fresh router.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from moesaic.routing.routers import CentroidRouter, MLPRouter


def reach(centroids: CentroidRouter, features: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "n e"], float]:
    """What the centroids say of rows, times how far each row lies from their centre; and how far rows do on average.

    That is linear in the row, as the cosine is not, and it names the same expert.
    """
    away = features - centroids.centre
    usual = away.norm(dim=-1).mean().clamp_min(1e-12).item()
    return away @ F.normalize(centroids.centroids, dim=-1).t() / usual, usual


@torch.no_grad()
def begin_at(router: MLPRouter, centroids: CentroidRouter, sharpness: float, usual: float) -> None:
    """Make a fresh router's logits `sharpness` times those of `reach`, exactly, whatever hidden layers it has.

    A hidden layer hands a number u on in two units, as gelu(u) - gelu(-u) = u. The other units stay as they were drawn,
    and count for nothing until they have learned: their outer weights are 0. Every layer needs two units an expert.
    """
    directions = F.normalize(centroids.centroids, dim=-1) * (sharpness / usual)
    e = len(directions)
    weight, bias = directions * router.deviation, directions @ (router.mean - centroids.centre)
    pair = torch.cat([torch.eye(e), -torch.eye(e)])  # (2e, e): what goes in, and its negative
    for layer in router.inner:
        outer, own = layer.get_parameter("weight"), layer.get_parameter("bias")
        outer[: 2 * e], own[: 2 * e] = pair @ weight, pair @ bias
        weight = torch.zeros(e, len(own))
        weight[:, : 2 * e], bias = pair.t(), torch.zeros(e)
    router.outer.weight.copy_(weight)
    router.outer.bias.copy_(bias)
