"""Paired differences of two arms over seeds and documents, with intervals and the smallest difference that shows.

Knows nothing about models: summed nats of every document come in, in equal order for both arms.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Real

from moesaic.errors import DataError

Nats = Float[np.ndarray, "depths seeds documents"]
Bytes = Real[np.ndarray, " documents"]
Outcome = Literal["better", "worse", "undecided"]

LEVEL, POWER = 0.95, 0.8
RESAMPLES, STEPS = 1000, 2001
"""Resamples of the documents, and steps in which the t distribution of the seeds is laid over each."""


@dataclass(frozen=True)
class Comparison:
    """One arm's bits per byte minus another's: mean, interval, and the smallest difference that would have shown.

    `smallest`: the difference that 4 of 5 such studies would find, at the spread seen over seeds and documents.
    """

    mean: float
    low: float
    high: float
    smallest: float
    seeds: int
    documents: int

    @property
    def outcome(self) -> Outcome:
        if self.low <= 0 <= self.high:
            return "undecided"
        return "better" if self.mean < 0 else "worse"


def bits_per_byte(nats: Float[np.ndarray, "*n"], size: Real[np.ndarray, "*n"]) -> float:
    """Bits that a model needs for a byte of text: summed nats / (ln 2 x summed bytes); lower is better.

    It does not depend on how a tokenizer cuts the text. Tokens without bytes, such as special ones, belong in neither
    sum.
    """
    return float(nats.sum(dtype=np.float64) / (math.log(2) * size.sum(dtype=np.float64)))


def compare(a: Nats, b: Nats, size: Bytes, seed: int = 0) -> Comparison:
    """The paired difference of arm a minus arm b; negative: a is better.

    Seed i of a and of b saw the same batches, so each depth gives one difference for each seed. The mean is over all of
    them; their spread is pooled within the depths, which leaves depths x (seeds - 1) degrees of freedom. The documents
    are drawn again with replacement; over every draw lies the t distribution of the mean over seeds, and the interval
    is taken from all of it. Documents are shared by all seeds, so more seeds do not make their part smaller.
    """
    depths, seeds, documents = a.shape
    if seeds < 2:
        raise DataError("no spread over seeds", expected="at least two seeds of every arm", got=seeds)
    difference = (a - b).astype(np.float64)
    counts = _resampled(documents, seed)
    bits = math.log(2) * (counts @ size.astype(np.float64))
    draws = np.einsum("dsn,rn->rds", difference, counts) / bits[:, None, None]
    own = difference.sum(-1) / (math.log(2) * size.sum(dtype=np.float64))
    freedom = depths * (seeds - 1)
    middles = t_quantile((np.arange(STEPS) + 0.5) / STEPS, freedom)
    spread = draws.mean((1, 2))[:, None] + middles * _error(draws)[:, None]
    low, high = np.quantile(spread, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    error = math.hypot(float(_error(own[None])[0]), float(draws.mean((1, 2)).std()))
    reach = t_quantile(np.array([(1 + LEVEL) / 2, POWER]), freedom).sum()
    return Comparison(float(own.mean()), float(low), float(high), float(reach * error), seeds, documents)


def t_quantile(shares: Float[np.ndarray, " n"], freedom: int) -> Float[np.ndarray, " n"]:
    """Quantiles of Student's t; with t = sqrt(freedom) tan(angle), its density is cos(angle)^(freedom - 1)."""
    angles = np.linspace(-math.pi / 2, math.pi / 2, 200_001)
    heights = np.cos(angles) ** (freedom - 1)
    area = np.concatenate([[0.0], np.cumsum(heights[1:] + heights[:-1])])
    return math.sqrt(freedom) * np.tan(np.interp(shares, area / area[-1], angles))


def _error(values: Float[np.ndarray, "r depths seeds"]) -> Float[np.ndarray, " r"]:
    """Standard error of the mean over depths and seeds, from the variance within depths."""
    return np.sqrt(values.var(-1, ddof=1).mean(-1) / (values.shape[1] * values.shape[2]))


def _resampled(documents: int, seed: int) -> Float[np.ndarray, "r documents"]:
    """How often each document is drawn in each resample."""
    draw = np.random.default_rng(seed).integers(documents, size=(RESAMPLES, documents))
    rows = np.arange(RESAMPLES)[:, None] * documents
    return np.bincount((draw + rows).ravel(), minlength=RESAMPLES * documents).reshape(RESAMPLES, -1).astype(np.float64)
