"""Mean nats per token of contenders on the same rows, and how sure one can be of each and of their differences.

Knows nothing about models, nor what a contender is: numbers per row come in, estimates go out.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Real

from moesaic.errors import CompatibilityError, DataError, nearest

ALL, UNSEEN = "all", "unseen"
DRAWS_AT_ONCE = 1 << 19
NEGLIGIBLE = 1e-9  # nats per token: what rounding alone may leave between two equal contenders


@dataclass(frozen=True, eq=False)
class Scores:
    """What one contender lost on every row: summed negative log-likelihood in nats, and how many tokens were scored.

    `domains` names each row's domain, `unseen` being that of rows nobody trained for; `groups` says which rows
    belong together (the examples of one conversation) and are therefore no independent evidence.
    """

    nats: Float[np.ndarray, " n"]
    tokens: Real[np.ndarray, " n"]
    domains: list[str]
    groups: list[str]

    def __post_init__(self) -> None:
        lengths = {len(self.nats), len(self.tokens), len(self.domains), len(self.groups)}
        if len(lengths) > 1:
            raise DataError("the columns of the scores differ in length", expected=len(self.nats), got=sorted(lengths))
        if ALL in self.domains:
            raise DataError("a domain has the name that stands for every domain", got=ALL, hint="rename the domain")
        if not np.isfinite(self.nats).all():
            raise DataError("a row's nats are not finite", got=f"row {int(np.argmin(np.isfinite(self.nats)))}")
        if not (self.tokens > 0).all():
            row = int(np.argmax(self.tokens <= 0))
            raise DataError("a row has no scored token", got=f"row {row}", hint="leave such rows out")

    def rows(self, domain: str = ALL) -> Bool[np.ndarray, " n"]:
        """Which rows are of `domain`; `all`: every row but the unseen ones. No such row raises DataError."""
        names = np.asarray(self.domains)
        found = names != UNSEEN if domain == ALL else names == domain
        if not found.any():
            known = sorted(set(self.domains))
            raise DataError("no row of this domain", expected=known, got=domain, hint=nearest(domain, known))
        return found


class Difference(NamedTuple):
    """One contender's mean nats minus another's, on the same rows, with its interval; positive: the other is better."""

    mean: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > NEGLIGIBLE or self.high < -NEGLIGIBLE


@dataclass(frozen=True, eq=False)
class Means:
    """Mean nats of several contenders on the rows of one domain, each with its value in every bootstrap resample.

    All contenders see the same resamples, so that whatever is computed from several of them is paired.
    """

    value: dict[str, float]
    draws: dict[str, Float[np.ndarray, " r"]]
    level: float

    @classmethod
    def of(
        cls,
        contenders: Mapping[str, Scores],
        domain: str = ALL,
        seed: int = 0,
        resamples: int = 2000,
        level: float = 0.95,
    ) -> "Means":
        """Resamples groups with replacement inside each domain; a mean is sum nats / sum tokens, a ratio estimator.

        A group that spans two domains counts as one group in each. The cluster bootstrap of Field and Welsh (2007),
        stratified; with fewer than some ten groups in a domain its intervals are too narrow.
        """
        first = next(iter(contenders.values()))
        if not all(_same_rows(first, other) for other in contenders.values()):
            raise CompatibilityError("the contenders were not scored on the same rows", got=list(contenders))
        rows = first.rows(domain)
        values = np.stack([*(scores.nats for scores in contenders.values()), first.tokens], 1, dtype=np.float64)[rows]
        domains, groups = np.asarray(first.domains)[rows], np.asarray(first.groups)[rows]

        generator = np.random.default_rng(seed)
        totals = np.zeros((resamples, values.shape[1]))
        for stratum in np.unique(domains):
            inside = domains == stratum
            totals += _resampled_sums(_sums_by_group(values[inside], groups[inside]), resamples, generator)
        draws = totals[:, :-1] / totals[:, -1:]
        return Means(
            {name: mean_nats(scores, domain) for name, scores in contenders.items()},
            {name: draws[:, column] for column, name in enumerate(contenders)},
            level,
        )

    def interval(self, name: str) -> tuple[float, float]:
        """The interval of one contender's mean nats."""
        return bounds(self.draws[name], self.level)

    def difference(self, a: str, b: str) -> Difference:
        """Mean nats of a minus those of b, with its paired interval."""
        return Difference(self.value[a] - self.value[b], *bounds(self.draws[a] - self.draws[b], self.level))


def mean_nats(scores: Scores, domain: str = ALL) -> float:
    """Nats per token: sum of nats / sum of tokens over the rows of `domain`."""
    rows = scores.rows(domain)
    return float(scores.nats[rows].sum(dtype=np.float64) / scores.tokens[rows].sum(dtype=np.float64))


def perplexity(nats: float) -> float | None:
    """exp of mean nats per token; None where that is no float any more."""
    try:
        return math.exp(nats)
    except OverflowError:
        return None


def interval(
    scores: Scores, domain: str = ALL, seed: int = 0, resamples: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """The bootstrap interval of `mean_nats`: percentiles, over groups, stratified by domain."""
    return Means.of({"it": scores}, domain, seed, resamples, level).interval("it")


def paired(
    a: Scores, b: Scores, domain: str = ALL, seed: int = 0, resamples: int = 2000, level: float = 0.95
) -> Difference:
    """`mean_nats` of a minus that of b, its interval from the same resampled groups for both."""
    return Means.of({"a": a, "b": b}, domain, seed, resamples, level).difference("a", "b")


def bounds(draws: Float[np.ndarray, " r"], level: float) -> tuple[float, float]:
    """The percentile interval: what lies between the (1 - level) / 2 and the (1 + level) / 2 quantile."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _same_rows(a: Scores, b: Scores) -> bool:
    return a.domains == b.domains and a.groups == b.groups and np.array_equal(a.tokens, b.tokens)


def _sums_by_group(values: Float[np.ndarray, "n c"], groups: np.ndarray) -> Float[np.ndarray, "g c"]:
    names, index = np.unique(groups, return_inverse=True)
    sums = np.zeros((len(names), values.shape[1]))
    np.add.at(sums, index, values)
    return sums


def _resampled_sums(
    groups: Float[np.ndarray, "g c"], resamples: int, generator: np.random.Generator
) -> Float[np.ndarray, "r c"]:
    """The sum over as many groups as there are, drawn with replacement: how often each was drawn, times its sums."""
    g, parts = len(groups), []
    for start in range(0, resamples, chunk := max(1, DRAWS_AT_ONCE // g)):
        size = min(chunk, resamples - start)
        drawn = generator.integers(g, size=(size, g)) + g * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * g).reshape(size, g)
        parts.append(counts.astype(np.float64) @ groups)
    return np.concatenate(parts)
