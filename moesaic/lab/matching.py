"""What two arms are compared at: equal tokens, parameters, active FLOPs or seconds.

Every cell has several decays from one training, so a cost between two of them is interpolated, and none is
extrapolated. Knows nothing about how cells are trained or stored.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from moesaic.lab.paired import Bytes, Comparison, compare

ENOUGH = 10.0
"""Tokens a parameter below which a model is under-trained, so that it says nothing about its architecture."""

Scores = Float[np.ndarray, "seeds documents"]


@dataclass(frozen=True)
class Measured:
    """An arm at one depth: its costs, and the nats of every unseen document at each decay, cheapest first.

    `trained`: the parameters that a token passes, without the embedding. `flops`: of training, for a token. `speed`:
    tokens per second.
    """

    parameters: int
    trained: int
    flops: float
    speed: float
    tokens: Sequence[int]
    nats: Float[np.ndarray, "decays seeds documents"]

    def at(self, tokens: float) -> Scores:
        """The nats after a number of tokens between two decays."""
        return between(self.tokens, self.nats, tokens)

    def per_parameter(self, tokens: float) -> float:
        return tokens / self.trained


Depths = Mapping[int, Measured]
"""The depths of one arm."""


@dataclass(frozen=True)
class Pair:
    """Two arms at equal cost, at a depth of the second; `least`: tokens a parameter of the less trained."""

    depth: int
    a: Scores
    b: Scores
    least: float


@dataclass(frozen=True)
class Matching:
    """A cost that is made equal: its title, its meaning, and the pairs of an arm with the one it is compared with."""

    title: str
    words: str
    pairs: Callable[[Depths, Depths], Iterator[Pair]]


@dataclass(frozen=True)
class Found:
    """The outcome of one matching: a comparison over depths, or the reason why there is none."""

    depths: list[int]
    comparison: Comparison | None = None
    why: str = ""


def between(costs: Sequence[float], values: Float[np.ndarray, "n *shape"], cost: float) -> Float[np.ndarray, "*shape"]:
    """Values at a cost inside rising costs: linear in the logarithm of the cost."""
    place = float(np.interp(math.log(cost), [math.log(one) for one in costs], np.arange(len(costs))))
    low = min(int(place), len(costs) - 2) if len(costs) > 1 else 0
    share = place - low
    return values[low] if share == 0 else (1 - share) * values[low] + share * values[low + 1]


def at_tokens(a: Depths, b: Depths) -> Iterator[Pair]:
    """The same depth after the same tokens."""
    for depth, one, other in shared(a, b):
        tokens = one.tokens[-1]
        least = min(one.per_parameter(tokens), other.per_parameter(tokens))
        yield Pair(depth, one.at(tokens), other.at(tokens), least)


def shared(a: Depths, b: Depths) -> Iterator[tuple[int, Measured, Measured]]:
    """The depths that both arms have."""
    return ((depth, a[depth], b[depth]) for depth in a if depth in b)


def at_cost(rate: Callable[[Measured], float]) -> Callable[[Depths, Depths], Iterator[Pair]]:
    """The same depth at the same cost, the largest that both reached; `rate`: cost of a token."""

    def pairs(a: Depths, b: Depths) -> Iterator[Pair]:
        for depth, one, other in shared(a, b):
            cost = min(measured.tokens[-1] * rate(measured) for measured in (one, other))
            mine, its = cost / rate(one), cost / rate(other)
            if mine >= one.tokens[0] and its >= other.tokens[0]:
                least = min(one.per_parameter(mine), other.per_parameter(its))
                yield Pair(depth, one.at(mine), other.at(its), least)

    return pairs


def at_parameters(a: Depths, b: Depths) -> Iterator[Pair]:
    """The same tokens and the same parameters, between two depths of arm a where it has none of that size."""
    ordered = sorted(a.values(), key=lambda measured: measured.parameters)
    sizes = [measured.parameters for measured in ordered]
    for depth, other in b.items():
        if sizes[0] <= other.parameters <= sizes[-1]:
            tokens = other.tokens[-1]
            nats = np.stack([measured.at(tokens) for measured in ordered])
            trained = between(sizes, np.array([[float(measured.trained)] for measured in ordered]), other.parameters)
            least = min(tokens / float(trained[0]), other.per_parameter(tokens))
            yield Pair(depth, between(sizes, nats, other.parameters), other.at(tokens), least)


MATCHINGS = {
    "tokens": Matching("tokens", "The same depth, trained on the same batches.", at_tokens),
    "parameters": Matching(
        "parameters",
        "The same tokens and as many parameters, inactive ones included: an arm is interpolated between its depths.",
        at_parameters,
    ),
    "flops": Matching(
        "active FLOPs",
        "The same depth and the same operations: the arm that needs fewer for a token reads more tokens.",
        at_cost(lambda measured: measured.flops),
    ),
    "seconds": Matching(
        "seconds",
        "The same depth and the same time of the processor: the faster arm reads more tokens.",
        at_cost(lambda measured: 1 / measured.speed),
    ),
}


def matched(matching: Matching, a: Depths, b: Depths, size: Bytes) -> Found:
    """Compare arm a with arm b; depths at which one of them is under-trained do not count."""
    pairs = [*matching.pairs(a, b)]
    trained = [pair for pair in pairs if pair.least >= ENOUGH]
    if trained:
        mine, its = np.stack([pair.a for pair in trained]), np.stack([pair.b for pair in trained])
        return Found([pair.depth for pair in trained], compare(mine, its, size))
    if pairs:
        most = max(pair.least for pair in pairs)
        return Found([], why=f"under-trained, {most:.1f} tokens a parameter of at least {ENOUGH:g}")
    return Found([], why=f"no {matching.title} that both reached")
