"""Who answers: the router's decision among the allowed experts, and the rule by which a conversation keeps its expert.

Pure functions and values. Knows nothing about HTTP, threads or files.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from moesaic.errors import RecipeError
from moesaic.generate.request import BASE, RoutingReport
from moesaic.routing import Routing

Reason = Literal["router", "forced", "held", "abstained", "tool"]
"""Why an expert answers: the router chose it, the caller named it, the conversation keeps it, the router chose none, or
a tool's result goes to the expert that asked for it."""

CHANGES = 0.5
"""How probable it is that a turn of a conversation changes the subject."""
HALF = 300
"""Bytes of a turn that says half as much as a long one."""

Select = Callable[[Float[Tensor, "n e"]], Routing]


@dataclass(frozen=True)
class Decision:
    """The decision about one request.

    `id`: None for a decision that nothing follows. `probabilities`: those of the router; None where the router was not
    asked. `held_from`: the expert that the conversation had before, where that is another one. `read`: tokens of the
    prompt. `routing`: the same for the engine.
    """

    id: str | None
    mixture: str
    expert: str
    reason: Reason
    probabilities: dict[str, float] | None
    weights: dict[str, float]
    held_from: str | None
    read: int
    router_ms: float
    routing: Routing

    @property
    def confidence(self) -> float | None:
        """The router's probability of the one that answers; None where the router was not asked."""
        return None if self.probabilities is None else self.probabilities[self.expert]

    @property
    def facts(self) -> dict[str, Any]:
        """The `routing` object of a response."""
        return {
            "id": self.id,
            "mixture": self.mixture,
            "expert": self.expert,
            "confidence": self.confidence,
            "probabilities": self.probabilities,
            "weights": self.weights,
            "reason": self.reason,
            "held_from": self.held_from,
            "router_ms": round(self.router_ms, 3),
        }


def precise(routing: Routing) -> Routing:
    """The same decision in float64, in which probabilities of any number of experts sum to 1."""
    base = None if routing.base is None else routing.base.double()
    return Routing(routing.weights.double(), routing.logits.double(), base)


def among(routing: Routing, names: Sequence[str], allowed: Set[str], select: Select) -> Routing:
    """The decision of the same router among the allowed experts and, if allowed, the base.

    Raises RecipeError where the router gives none of them a probability.
    """
    if BASE in allowed and allowed >= {*names}:
        return routing
    barred = torch.tensor([name not in allowed for name in names], device=routing.logits.device)
    logits = routing.logits.masked_fill(barred, -torch.inf)
    chosen, base = select(logits), routing.of_base
    if BASE in allowed:
        whole = select(routing.logits).weights.sum(-1, keepdim=True)  # 0 where the router knows no word of the prompt
        trusted = routing.weights.sum(-1, keepdim=True) / whole.clamp_min(torch.finfo(whole.dtype).tiny)
        return Routing(chosen.weights * trusted, logits, base)
    if bool(torch.isneginf(logits).all()):
        hint = "allow base too, or name one expert as the model"
        got = ", ".join(name for name in names if name in allowed) or "none"
        raise RecipeError("the router would choose no allowed expert", field="routing.allow", got=got, hint=hint)
    return Routing(chosen.weights, logits, torch.full_like(base, -torch.inf))


def believed(
    before: Mapping[str, float], turn: Mapping[str, float], experts: Collection[str], size: int
) -> dict[str, float]:
    """Whose subject a conversation has after another turn: a probability of each of these experts.

    The forward recursion of a hidden Markov model, whose hidden state is the expert (Rabiner, "A tutorial on hidden
    Markov models", 1989, section III.A). `before`: the probabilities until then. A turn changes the subject with the
    probability CHANGES, to any expert alike. `turn`: the router's probabilities for the turn by itself, which weigh
    little where it has few bytes (`size`); what they leave to the base speaks for all alike. So "why?" changes nothing.
    """
    weight, n = size / (size + HALF), len(experts)
    until = {one: before.get(one, 0.0) + before.get(BASE, 0.0) / n for one in experts}
    nobodys, stay = turn.get(BASE, 0.0) ** weight / n, (1 - CHANGES) / (math.fsum(until.values()) or 1.0)
    found = {one: (stay * until[one] + CHANGES / n) * (turn[one] ** weight + nobodys) for one in experts}
    whole = math.fsum(found.values())
    return {one: share / whole for one, share in found.items()}


def stays(held: str | None, new: str, probabilities: Mapping[str, float], margin: float) -> bool:
    """Whether a conversation keeps its expert: unless the new one's probability is larger by at least `margin`."""
    return held not in (None, new) and probabilities[new] - probabilities[held or new] < margin


def routing_of(shares: Mapping[str, float], names: Sequence[str], select: Select, like: Routing) -> Routing:
    """A decision between experts by these probabilities, without a part of the base."""
    logits = torch.tensor([[shares.get(name, 0.0) for name in names]]).log().to(like.logits)
    chosen = select(logits)
    return Routing(chosen.weights, logits, torch.full_like(like.of_base, -torch.inf))


def one_hot(expert: str, names: Sequence[str], like: Routing) -> Routing:
    """The same logits, and weights by which one expert, or the base, answers alone."""
    weights = torch.tensor([[float(name == expert) for name in names]]).reshape(1, len(names)).to(like.weights)
    return Routing(weights, like.logits, like.base)


def report_of(routing: Routing, names: Sequence[str]) -> RoutingReport:
    """The only row of a decision by name."""
    (report,) = RoutingReport.each(names, precise(routing))
    return report


def renormalised(probabilities: Mapping[str, float], values: Sequence[str]) -> dict[str, float]:
    """The probabilities of some outcomes as shares of their sum; equal ones where the sum is 0."""
    total = math.fsum(probabilities[value] for value in values)
    return {value: probabilities[value] / total if total else 1 / len(values) for value in values}


def certainty(shares: Collection[float]) -> float:
    """1 - entropy / log(n): 0 for equal shares, 1 for a certain outcome."""
    entropy = -math.fsum(share * math.log(share) for share in shares if share > 0)
    return min(1.0, max(0.0, 1 - entropy / math.log(len(shares))))
