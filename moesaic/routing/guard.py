"""A guard: which prompts belong to no expert, so that the base answers them; and decisions of a router with a guard.

Knows nothing about training or files. e experts; the guard's last outcome is none of them.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from moesaic.errors import RecipeError
from moesaic.routing.gates import Routing
from moesaic.routing.routers import MLPRouter
from moesaic.routing.selection import Selection
from moesaic.routing.states import Features, means_of


class Guard(nn.Module):
    """Features -> log-odds that a prompt belongs to one of the experts, by networks over e + 1 outcomes.

    One network reads the router's feature; with `letters`, a second reads that many counts of the prompt's characters,
    and their logits are added. `temperature` divides the sum and calibrates the outcomes. `limit`: the router abstains
    on prompts with lower log-odds.
    """

    limit: Tensor
    temperature: Tensor

    def __init__(self, num_features: int, num_experts: int, hidden: list[int], letters: int = 0):
        super().__init__()
        self.net = MLPRouter(num_features, num_experts + 1, hidden, dropout=0.1)
        self.letters = MLPRouter(letters, num_experts + 1, hidden, dropout=0.1) if letters else None
        self.register_buffer("limit", torch.zeros(()))
        self.register_buffer("temperature", torch.ones(()))

    @property
    def shape(self) -> dict[str, Any]:
        sizes, more = self.net.shape, {"letters": len(self.letters.mean)} if self.letters else {}
        own = {key: sizes[key] for key in ("num_features", "hidden")}
        return {**own, "num_experts": sizes["num_experts"] - 1, **more}

    @property
    def least(self) -> float:
        """The least probability of belonging to an expert at which the router does not abstain."""
        return self.limit.double().sigmoid().item()

    def outcomes(self, features: Features, characters: Float[Tensor, "n s"] | None) -> Float[Tensor, "n outcomes"]:
        """Logits of the e experts and of none; `characters`: counts, which only a guard with `letters` reads."""
        vectors = means_of(features)
        if vectors is None:
            raise RecipeError("texts have no vectors to judge by", field="abstain", hint="write `abstain: off`")
        logits = self.net(vectors)
        if self.letters is not None:
            assert characters is not None
            logits = logits + self.letters(characters.to(logits))
        return logits / self.temperature

    def forward(self, features: Features, characters: Float[Tensor, "n s"] | None) -> Float[Tensor, " n"]:
        return odds(self.outcomes(features, characters))


def odds(outcomes: Float[Tensor, "n outcomes"]) -> Float[Tensor, " n"]:
    """The log-odds of the experts together against the last outcome."""
    return outcomes[:, :-1].logsumexp(-1) - outcomes[:, -1]


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def guarded(
    select: Selection, logits: Float[Tensor, "n e"], own: Float[Tensor, " n"] | None, limit: Tensor | None
) -> Routing:
    """Select from the logits, and abstain where the log-odds `own` of a guard are below `limit`; None: no guard."""
    routing = select(logits)
    if own is None or limit is None:
        return routing
    weights = routing.weights * (own >= limit.to(own.device))[:, None]
    return Routing(weights, logits, logits.logsumexp(-1) - own)
