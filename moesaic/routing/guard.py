"""A guard: which prompts belong to no expert, so that the base answers them; and decisions of a router with a guard.

Knows nothing about training or files. e experts; the guard's last outcome is none of them.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from moesaic.errors import RecipeError
from moesaic.routing.gates import Routing
from moesaic.routing.routers import MLPRouter
from moesaic.routing.selection import Selection
from moesaic.routing.states import Features, means_of

LEAST_PART = 1e-3
"""The least share of an answer that an expert has where the router does not abstain."""


@dataclass(frozen=True)
class Ruling:
    """How a guard's opinion and a router's logits make a decision.

    `limit`: the log-odds of belonging to an expert below which the router abstains; between the limit and even odds
    the base has a part in the answer. `joint`: the guard has a voice in the choice between experts, and this
    temperature calibrates the sum of both logits; None: the router chooses alone.
    """

    limit: Tensor
    joint: Tensor | None = None


class Opinion(NamedTuple):
    """A guard's opinion on n prompts.

    `outcomes`: calibrated logits of the e experts and of none. `voice`: the part of those of the experts that comes
    from the wording alone, so that a router's own feature does not count twice.
    """

    outcomes: Float[Tensor, "n outcomes"]
    voice: Float[Tensor, "n e"]

    def to(self, device: torch.device) -> "Opinion":
        return Opinion(*(own.to(device, non_blocking=True) for own in self))


class Guard(nn.Module):
    """Features of a prompt -> its opinion, by networks whose logits of e experts and of none of them are added.

    One network reads the router's feature; with `wording`, two more read that many counts each, of the prompt's
    characters and of its last words: what one has not seen, another may know. `temperature` divides the sum and
    calibrates the outcomes. `limit`, `joint`: see `Ruling`; a `joint` of 0 means None.
    """

    limit: Tensor
    joint: Tensor
    temperature: Tensor

    def __init__(self, num_features: int, num_experts: int, hidden: list[int], wording: int = 0):
        super().__init__()
        self.net = MLPRouter(num_features, num_experts + 1, hidden, dropout=0.1)
        self.counts = wording
        self.letters, self.words = (
            MLPRouter(wording, num_experts + 1, hidden, dropout=0.1) if wording else None for _ in range(2)
        )
        self.register_buffer("limit", torch.zeros(()))
        self.register_buffer("joint", torch.zeros(()))
        self.register_buffer("temperature", torch.ones(()))

    @property
    def shape(self) -> dict[str, Any]:
        sizes, more = self.net.shape, {"wording": self.counts} if self.counts else {}
        own = {key: sizes[key] for key in ("num_features", "hidden")}
        return {**own, "num_experts": sizes["num_experts"] - 1, **more}

    @property
    def ruling(self) -> Ruling:
        return Ruling(self.limit, self.joint if self.joint.item() > 0 else None)

    @property
    def least(self) -> float:
        """The least probability of belonging to an expert at which the router does not abstain."""
        return self.limit.double().sigmoid().item()

    def forward(self, features: Features, wording: Float[Tensor, "n s"] | None) -> Opinion:
        """Judge prompts; `wording`: counts, which only a guard with that option reads."""
        vectors = means_of(features)
        if vectors is None:
            raise RecipeError("texts have no vectors to judge by", field="abstain", hint="write `abstain: off`")
        logits = self.net(vectors)
        voice = torch.zeros_like(logits)
        if self.letters is not None and self.words is not None:
            assert wording is not None
            letters, words = wording.to(logits, non_blocking=True).chunk(2, -1)
            voice = self.letters(letters) + self.words(words)
        return Opinion((logits + voice) / self.temperature, voice[:, :-1] / self.temperature)


def odds(outcomes: Float[Tensor, "n outcomes"]) -> Float[Tensor, " n"]:
    """The log-odds of the experts together against the last outcome."""
    return outcomes[:, :-1].logsumexp(-1) - outcomes[:, -1]


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def guarded(
    select: Selection,
    logits: Float[Tensor, "n e"],
    opinion: Opinion | None,
    ruling: Ruling | None,
) -> Routing:
    """Select from the logits, and leave to the base what a guard does not trust the experts with; None: no guard."""
    if opinion is None or ruling is None:
        return select(logits)
    own = odds(opinion.outcomes)
    if ruling.joint is not None:
        logits = (logits + opinion.voice) / ruling.joint.to(logits.device)
    weights = select(logits).weights * trust(own, ruling.limit.to(own))[:, None]
    return Routing(weights, logits, logits.logsumexp(-1) - own)


def trust(own: Float[Tensor, " n"], limit: Float[Tensor, ""]) -> Float[Tensor, " n"]:
    """The experts' share of answers to prompts with these log-odds of being theirs.

    1 from even odds on, 0 below the limit, and in between as the probability rises from one to the other: where a guard
    is not sure, half an adapter does less harm to a prompt of nobody's than a whole one, and most of the good to an
    own one. A limit above even odds leaves nothing in between.
    """
    least, answered = limit.sigmoid(), (own >= limit).to(own)
    rising = (own.sigmoid() - least) / (0.5 - least).clamp_min(torch.finfo(own.dtype).tiny)
    return torch.where(limit < 0, rising.clamp(LEAST_PART, 1), 1.0) * answered
