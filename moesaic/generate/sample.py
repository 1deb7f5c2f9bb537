"""Sampling: next-token logits -> the next token of each row, with the settings as one value.

Knows nothing about models or text. n rows, v tokens of the vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moesaic.errors import NonFiniteError, RecipeError

COLDEST = 1e-6  # below it, a float32 logit divided by the temperature is no number any more


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings for drawing the next token. The default is greedy: always the most probable one.

    `temperature` 0: greedy. `top_k`: among so many most probable tokens (0: all). `top_p`: among the fewest most
    probable tokens that together have this probability (arXiv 1904.09751). Tokens as probable as the last one admitted
    are admitted too. `seed` None: other text every time.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        def require(field: str, holds: bool, expected: str) -> None:
            if not holds:
                got = getattr(self, field)
                raise RecipeError("no such way to sample", field=field, expected=expected, got=got)

        warm = self.temperature == 0 or (math.isfinite(self.temperature) and self.temperature >= COLDEST)
        require("temperature", warm, f"0, or a number from {COLDEST}")
        require("top_k", self.top_k >= 0, ">= 0")
        require("top_p", 0 < self.top_p <= 1, "above 0, at most 1")
        require("seed", self.seed is None or 0 <= self.seed < 2**63, ">= 0, below 2**63")

    def generators(self, n: int) -> list[torch.Generator]:
        """The randomness of n continuations of a prompt: number i of seed s is the only one of seed s + i.

        They stand on the host, so that a seed means the same on every device.
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
    """The next token of each row, on the host: reading it is the one wait for the device in a step.

    Each row has its own settings, and draws one number from its own generator, so what it gets does not depend on the
    rows beside it. A logit of -inf rules a token out. Raises NonFiniteError for a row with NaN, +inf or nothing but
    -inf.
    """
    ids = logits.argmax(-1)
    alike: dict[Sampling, list[int]] = {}
    for row, sampling in enumerate(samplings):
        if sampling.temperature:
            alike.setdefault(replace(sampling, seed=None), []).append(row)
    for sampling, rows in alike.items():
        every = len(rows) == len(logits)
        at = torch.tensor(rows, device=logits.device)
        drawn = draw(probabilities(logits if every else logits[at], sampling), [generators[row] for row in rows])
        ids = drawn if every else ids.index_copy(0, at, drawn)
    # NaN and +inf win every maximum, and -inf is one only where all of the row is.
    ids = torch.where(logits.amax(-1).isfinite(), ids, -1).cpu()
    if bad := [row for row, id in enumerate(ids.tolist()) if id < 0]:
        raise NonFiniteError("the model's logits are not finite", field=f"row {', '.join(map(str, bad))}")
    return ids


def probabilities(logits: Float[Tensor, "n v"], sampling: Sampling) -> Float[Tensor, "n v"]:
    """What each token's share of the draw is; 0 for those that `top_k` and `top_p` leave out."""
    scaled = (logits.float() - logits.float().amax(-1, keepdim=True)) / sampling.temperature
    if sampling.top_k or sampling.top_p < 1:
        ordered = scaled.topk(min(sampling.top_k or scaled.shape[1], scaled.shape[1])).values
        shares = ordered.softmax(-1)
        admitted = (shares.cumsum(-1) - shares < sampling.top_p).sum(-1, keepdim=True)
        scaled = scaled.masked_fill(scaled < ordered.gather(-1, admitted.clamp_min(1) - 1), -torch.inf)
    return scaled.softmax(-1)


def draw(shares: Float[Tensor, "n v"], generators: Sequence[torch.Generator]) -> Int[Tensor, " n"]:
    """One token a row, by inverting the cumulative distribution in the vocabulary's own order.

    In order of probability, two tokens that are nearly equal would change places with the rounding of a batch.
    """
    points = torch.stack([torch.rand((), generator=g, dtype=torch.float32, device=g.device) for g in generators])
    # A token without a share reaches 0 and so is never drawn, however the sum is rounded.
    reach = shares.cumsum(-1) * (shares > 0)
    points = points.view(len(shares), 1).to(reach.device) * reach.amax(-1, keepdim=True)
    return (reach > points).int().argmax(-1)
