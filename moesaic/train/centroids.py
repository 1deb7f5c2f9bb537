"""A router of layers that starts with the decisions of centroids instead of random ones.

Knows nothing about training: sets the weights of a fresh router.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from moesaic.routing.routers import CentroidRouter, MLPRouter


def reach(centroids: CentroidRouter, features: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "n e"], float]:
    """Cosines to the centroids times each row's distance from their centre over the mean distance; and that mean.

    Unlike the cosine, these logits are linear in the row, and their largest names the same expert.
    """
    away = features - centroids.centre
    usual = away.norm(dim=-1).mean().clamp_min(1e-12).item()
    return away @ F.normalize(centroids.centroids, dim=-1).t() / usual, usual


@torch.no_grad()
def begin_at(router: MLPRouter, centroids: CentroidRouter, sharpness: float, usual: float) -> None:
    """Make a fresh router's logits `sharpness` times those of `reach`, exactly, whatever hidden layers it has.

    A hidden layer passes a number u on in two units, as gelu(u) - gelu(-u) = u. The other units stay random, with
    outer weights of 0. Every layer needs two units an expert.
    """
    directions = F.normalize(centroids.centroids, dim=-1) * (sharpness / usual)
    e = len(directions)
    weight, bias = directions * router.deviation, directions @ (router.mean - centroids.centre)
    pair = torch.cat([torch.eye(e), -torch.eye(e)])  # (2e, e): the input, and its negative
    for layer in router.inner:
        outer, own = layer.get_parameter("weight"), layer.get_parameter("bias")
        outer[: 2 * e], own[: 2 * e] = pair @ weight, pair @ bias
        weight = torch.zeros(e, len(own))
        weight[:, : 2 * e], bias = pair.t(), torch.zeros(e)
    router.outer.weight.copy_(weight)
    router.outer.bias.copy_(bias)
