"""Mean nats per token of contenders on the same rows, with intervals of the means and of their differences.

Knows nothing about models, nor what a contender is: numbers per row come in, estimates go out.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int, Real

from moesaic.errors import CompatibilityError, DataError, nearest
from moesaic.evaluate.units import NATS, Unit

ALL, UNSEEN = "all", "unseen"
DRAWS_AT_ONCE = 1 << 19
NEGLIGIBLE = 1e-6  # nats per token: what rounding alone may leave between two equal contenders


@dataclass(frozen=True, eq=False)
class Scores:
    """Loss of one contender on every row: summed negative log-likelihood in nats, and the number of scored tokens.

    `domains`: of each row; `unseen` for rows outside the training domains. Rows of one group (the examples of one
    conversation) are not independent.
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

    @property
    def unit(self) -> Unit:
        return NATS

    def columns(self, domain: str) -> Float[np.ndarray, "_ 2"]:
        rows = self.rows(domain)
        return np.stack([self.nats[rows], self.tokens[rows]], 1).astype(np.float64)

    def loss(self, sums: Mapping[str, Float[np.ndarray, "r 2"]]) -> Float[np.ndarray, " r"]:
        """Nats per token of all domains together, from sums of their columns: a ratio estimator."""
        total = np.sum([*sums.values()], 0)
        return total[:, 0] / total[:, 1]

    def mean(self, domain: str = ALL) -> float:
        return mean_nats(self, domain)

    def same_rows(self, other: "Scores") -> bool:
        alike = self.domains == other.domains and self.groups == other.groups
        return alike and np.array_equal(self.tokens, other.tokens)

    def over_domains(self) -> "Scores":
        return OverDomains(self.nats, self.tokens, self.domains, self.groups)

    @property
    def merit(self) -> Float[np.ndarray, " n"]:
        return self.nats

    def picked(self, parts: "Sequence[Scores]", which: Int[np.ndarray, " n"]) -> "Scores":
        """Take every row from the part that `which` names."""
        return replace(self, nats=np.stack([part.nats for part in parts])[which, np.arange(len(which))])

    def blended(self, parts: "Sequence[Scores]") -> "Scores":
        """The mean of the parts: the exact expectation of an even draw for every row."""
        return replace(self, nats=np.stack([part.nats for part in parts]).mean(0))

    def figures(self) -> dict[str, Any]:
        """Nats per token and perplexity, by domain and over all training domains."""
        nats = {domain: mean_nats(self, domain) for domain in sorted(set(self.domains) - {UNSEEN})}
        nats |= {ALL: mean_nats(self)} | ({UNSEEN: mean_nats(self, UNSEEN)} if UNSEEN in self.domains else {})
        return {"nats": nats, "perplexity": {domain: perplexity(value) for domain, value in nats.items()}}

    def rows(self, domain: str = ALL) -> Bool[np.ndarray, " n"]:
        """Mask of the rows of `domain`; `all`: every row but the unseen ones. Raises DataError where it is empty."""
        names = np.asarray(self.domains)
        found = names != UNSEEN if domain == ALL else names == domain
        if not found.any():
            known = sorted(set(self.domains))
            raise DataError("no row of this domain", expected=known, got=domain, hint=nearest(domain, known))
        return found


@dataclass(frozen=True, eq=False)
class OverDomains(Scores):
    """The same results with another mean of all: the mean over the domains, each of which counts the same."""

    def loss(self, sums: Mapping[str, Float[np.ndarray, "r 2"]]) -> Float[np.ndarray, " r"]:
        return np.mean([some[:, 0] / some[:, 1] for some in sums.values()], 0)

    def mean(self, domain: str = ALL) -> float:
        domains = sorted({*self.domains} - {UNSEEN}) if domain == ALL else [domain]
        return float(np.mean([mean_nats(self, one) for one in domains]))


@runtime_checkable
class Judged(Protocol):
    """Results of one contender on every row: `Scores`, or grades of answers.

    The loss follows from sums of `columns` over the rows of each domain, so that sums over resampled rows give the
    loss of the resample. `merit`: by row, the lower the better. `picked` takes every row from the part that `which`
    names; `blended` averages the parts; `over_domains` is the same with the mean over domains as its mean.
    """

    @property
    def groups(self) -> list[str]: ...
    @property
    def domains(self) -> list[str]: ...
    @property
    def unit(self) -> Unit: ...
    def rows(self, domain: str = ALL) -> Bool[np.ndarray, " n"]: ...
    def columns(self, domain: str) -> Float[np.ndarray, "_ c"]: ...
    def loss(self, sums: Mapping[str, Float[np.ndarray, "r c"]]) -> Float[np.ndarray, " r"]: ...
    def mean(self, domain: str = ALL) -> float: ...
    def same_rows(self, other: Any) -> bool: ...
    @property
    def merit(self) -> Float[np.ndarray, " n"]: ...
    def picked(self, parts: Sequence[Any], which: Int[np.ndarray, " n"]) -> Any: ...
    def blended(self, parts: Sequence[Any]) -> Any: ...
    def over_domains(self) -> "Judged": ...
    def figures(self) -> dict[str, Any]: ...


class Difference(NamedTuple):
    """One contender's mean nats minus another's, on the same rows, with its interval; positive: the other is better."""

    mean: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        return self.low > NEGLIGIBLE or self.high < -NEGLIGIBLE


@dataclass(frozen=True, eq=False)
class Means:
    """Mean nats of several contenders on the rows of one domain, with their values in every bootstrap resample.

    All contenders share the resamples, so that differences and ratios are paired.
    """

    value: dict[str, float]
    draws: dict[str, Float[np.ndarray, " r"]]
    level: float

    @classmethod
    def of(
        cls,
        contenders: Mapping[str, Judged],
        domain: str = ALL,
        seed: int = 0,
        resamples: int = 2000,
        level: float = 0.95,
    ) -> "Means":
        """Resample groups with replacement inside each domain; a mean of nats is a ratio of sums, nats / tokens.

        A group that spans two domains counts as one group in each. The cluster bootstrap of Field and Welsh (2007),
        stratified; with fewer than some ten groups in a domain its intervals are too narrow.
        """
        first = next(iter(contenders.values()))
        if not all(first.same_rows(other) for other in contenders.values()):
            raise CompatibilityError("the contenders were not scored on the same rows", got=list(contenders))
        domains, groups = np.asarray(first.domains)[first.rows(domain)], np.asarray(first.groups)

        generator = np.random.default_rng(seed)
        sums: dict[str, dict[str, np.ndarray]] = {name: {} for name in contenders}
        for stratum in map(str, np.unique(domains)):
            every = [scores.columns(stratum) for scores in contenders.values()]
            own = _sums_by_group(np.concatenate(every, 1), groups[first.rows(stratum)])
            parts = np.split(_resampled_sums(own, resamples, generator), len(every), 1)
            for name, part in zip(contenders, parts, strict=True):
                sums[name][stratum] = part
        return Means(
            {name: scores.mean(domain) for name, scores in contenders.items()},
            {name: scores.loss(sums[name]) for name, scores in contenders.items()},
            level,
        )

    def interval(self, name: str) -> tuple[float, float]:
        return bounds(self.draws[name], self.level)

    def difference(self, a: str, b: str) -> Difference:
        return Difference(self.value[a] - self.value[b], *bounds(self.draws[a] - self.draws[b], self.level))


def mean_nats(scores: Scores, domain: str = ALL) -> float:
    """Nats per token: sum of nats / sum of tokens over the rows of `domain`."""
    rows = scores.rows(domain)
    return float(scores.nats[rows].sum(dtype=np.float64) / scores.tokens[rows].sum(dtype=np.float64))


def perplexity(nats: float) -> float | None:
    try:
        return math.exp(nats)
    except OverflowError:
        return None


def paired(a: Scores, b: Scores, domain: str = ALL, **settings: Any) -> Difference:
    """`mean_nats` of a minus that of b with its paired interval; `settings` as `Means.of` takes them."""
    return Means.of({"a": a, "b": b}, domain, **settings).difference("a", "b")


def bounds(draws: Float[np.ndarray, " r"], level: float) -> tuple[float, float]:
    """The percentile interval, from the (1 - level) / 2 to the (1 + level) / 2 quantile."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _sums_by_group(values: Float[np.ndarray, "n c"], groups: np.ndarray) -> Float[np.ndarray, "g c"]:
    names, index = np.unique(groups, return_inverse=True)
    sums = np.zeros((len(names), values.shape[1]))
    np.add.at(sums, index, values)
    return sums


def _resampled_sums(
    groups: Float[np.ndarray, "g c"], resamples: int, generator: np.random.Generator
) -> Float[np.ndarray, "r c"]:
    """Sums over g groups drawn with replacement: the counts of each draw times the sums of the groups."""
    g, parts = len(groups), []
    for start in range(0, resamples, chunk := max(1, DRAWS_AT_ONCE // g)):
        size = min(chunk, resamples - start)
        drawn = generator.integers(g, size=(size, g)) + g * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * g).reshape(size, g)
        # No matrix product of numpy: its library waits without end where there is no memory for its buffers.
        parts.append(np.einsum("rg,gc->rc", counts.astype(np.float64), groups))
    return np.concatenate(parts)
