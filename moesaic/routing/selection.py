"""Selection: logits -> weights, a pure function with explicit settings.

Knows nothing about features, routers or layers.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from moesaic.config import SelectionKind
from moesaic.errors import RecipeError
from moesaic.routing.gates import Routing


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The number of experts that answer, and their weights.

    `soft`: all, by probability. `top_k`: the k most probable. `top_1`: the most probable.
    `renormalise` scales the chosen weights to sum to 1; otherwise the weights are the probabilities, so that a loss on
    the answer reaches the router. With `top_1` and `renormalise` the weight is exactly 1 and carries no gradient.
    """

    kind: SelectionKind = "top_1"
    k: int | None = None
    renormalise: bool = True

    def __post_init__(self) -> None:
        if (self.kind == "top_k") != (self.k is not None):
            raise RecipeError("top_k needs k, other kinds take no k", field="k", got=f"{self.kind} and k={self.k}")
        if self.k is not None and self.k < 1:
            raise RecipeError("too few experts chosen", field="k", expected=">= 1", got=self.k)

    def __call__(self, logits: Float[Tensor, "n e"]) -> Routing:
        """Select the weights of each row; a row of -inf logits abstains."""
        shares = probabilities(logits)
        if self.kind == "soft":
            return Routing(shares, logits)
        k = self.k or 1
        if k > logits.shape[-1]:
            raise RecipeError("more experts chosen than exist", field="k", expected=f"<= {logits.shape[-1]}", got=k)
        values, experts = shares.topk(k, -1)
        if self.renormalise:
            values = values / values.sum(-1, keepdim=True).clamp_min(1e-20)  # which leaves 0 where a row abstains
        return Routing(torch.zeros_like(shares).scatter(-1, experts, values), logits)


def probabilities(logits: Float[Tensor, "n e"]) -> Float[Tensor, "n e"]:
    """The softmax of each row; all 0 in a row of -inf logits."""
    silent = torch.isneginf(logits).all(-1, keepdim=True)
    return torch.where(silent, 0.0, logits.masked_fill(silent, 0.0).softmax(-1))
