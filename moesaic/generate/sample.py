"""Sampling: next-token logits -> the next token of each row, with the settings as one value.

Knows nothing about models or text. n rows, v tokens of the vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moesaic.errors import RecipeError, number, whole
from moesaic.ops.host import to_device, to_host

COLDEST = 1e-6  # below it, a float32 logit divided by the temperature overflows


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings of the draw of the next token; by default the most probable one.

    `temperature`: 0 is greedy. `top_k`: the number of most probable tokens to draw from (0: all). `top_p`: draw from
    the fewest most probable tokens with at least this total probability (arXiv 1904.09751). Ties with the last admitted
    token are admitted too. `seed`: None draws another text every time.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for field, read in (("temperature", number), ("top_p", number), ("top_k", whole), ("seed", whole)):
            if (value := getattr(self, field)) is not None or field != "seed":
                object.__setattr__(self, field, read(value, field))  # numbers of numpy become those of Python
        warm = self.temperature == 0 or (math.isfinite(self.temperature) and self.temperature >= COLDEST)
        for field, holds, expected in (
            ("temperature", warm, f"0, or a number from {COLDEST}"),
            ("top_k", self.top_k >= 0, ">= 0"),
            ("top_p", 0 < self.top_p <= 1, "above 0, at most 1"),
            ("seed", self.seed is None or 0 <= self.seed < 2**63, ">= 0, below 2**63"),
        ):
            if not holds:
                raise RecipeError("invalid sampling", field=field, expected=expected, got=getattr(self, field))

    def generators(self, n: int) -> list[torch.Generator]:
        """The generators of n continuations: number i of seed s equals the first of seed s + i.

        All are on the host, so that a seed means the same on every device.
        """
        generators = [torch.Generator("cpu") for _ in range(n)]
        for index, generator in enumerate(generators):
            if self.seed is None:
                generator.seed()
            else:
                generator.manual_seed(self.seed + index)
        return generators


GREEDY = Sampling()


def choose(
    logits: Float[Tensor, "n v"], samplings: Sequence[Sampling], generators: Sequence[torch.Generator]
) -> Int[Tensor, " n"]:
    """The next token of each row, on the device; waits for nothing.

    Each row has its own settings and generator, so its token does not depend on other rows. A logit of -inf excludes a
    token; a row with NaN, +inf or nothing but -inf gets -1.
    """
    ids = logits.argmax(-1)
    alike: dict[Sampling, list[int]] = {}
    for row, sampling in enumerate(samplings):
        if sampling.temperature:
            alike.setdefault(replace(sampling, seed=None), []).append(row)
    for sampling, rows in alike.items():
        every = len(rows) == len(logits)
        at = to_device(rows, logits.device)
        drawn = draw(probabilities(logits if every else logits[at], sampling), [generators[row] for row in rows])
        ids = drawn if every else ids.index_copy(0, at, drawn)
    # NaN and +inf win every maximum, and -inf only if the whole row is -inf.
    return torch.where(logits.amax(-1).isfinite(), ids, -1)


@dataclass(frozen=True)
class Logprob:
    """A token that was written, its log-probability, and those of the most probable tokens, `top`, in their order.

    The probabilities are the model's own, in float32: before temperature, `top_k`, `top_p` and the rule that a text
    never begins with its end.
    """

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def logprobs(logits: Float[Tensor, "n v"], ids: Sequence[int], tops: Sequence[int]) -> list[Logprob]:
    """The log-probability of the token of each row, with so many of the most probable ones; waits for the device."""
    every = logits.float().log_softmax(-1)
    own = to_host(every.gather(1, to_device(ids, every.device)[:, None])[:, 0])
    values, places = map(to_host, every.topk(min(max(tops), every.shape[1])))
    rows = zip(ids, own, places, values, tops, strict=True)
    return [Logprob(id, one, tuple(zip(some[:k], shares[:k], strict=True))) for id, one, some, shares, k in rows]


def probabilities(logits: Float[Tensor, "n v"], sampling: Sampling) -> Float[Tensor, "n v"]:
    """Each token's probability in the draw; 0 for tokens that `top_k` and `top_p` exclude."""
    scaled = (logits.float() - logits.float().amax(-1, keepdim=True)) / sampling.temperature
    if sampling.top_k or sampling.top_p < 1:
        ordered = scaled.topk(min(sampling.top_k or scaled.shape[1], scaled.shape[1])).values
        shares = ordered.softmax(-1)
        admitted = (shares.cumsum(-1) - shares < sampling.top_p).sum(-1, keepdim=True)
        scaled = scaled.masked_fill(scaled < ordered.gather(-1, admitted.clamp_min(1) - 1), -torch.inf)
    return scaled.softmax(-1)


def draw(shares: Float[Tensor, "n v"], generators: Sequence[torch.Generator]) -> Int[Tensor, " n"]:
    """One token per row, by inverting the cumulative distribution in the vocabulary's own order.

    In order of probability, rounding would swap two tokens that are nearly equal.
    """
    points = torch.stack([torch.rand((), generator=g, dtype=torch.float32, device=g.device) for g in generators])
    # A token without a share has a reach of 0, so it is never drawn, however the sum is rounded.
    reach = shares.cumsum(-1) * (shares > 0)
    points = points.view(len(shares), 1).to(reach.device, non_blocking=True) * reach.amax(-1, keepdim=True)
    return (reach > points).int().argmax(-1)
