"""Which contender to use: the cheapest of those that the scores do not tell from the best.

Knows nothing about rows or models, and says nothing in words: means with their resamples and costs come in.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypedDict

from moesaic.evaluate.statistics import Difference, Means
from moesaic.evaluate.units import Unit

USABLE = {  # from the simplest to serve to the most demanding; the value is the name in a sentence
    "base": "the base alone",
    "average": "the merged average",
    "expert": "the expert {} alone",
    "joint": "the joint expert",
    "joint_wide": "the wide joint expert",
    "router": "the mixture",
}


class Cost(TypedDict, total=False):
    """Cost of a contender; a missing or None entry is unknown.

    `bytes`: active weights, those read for one token; of a mixture, the base, the router and the chosen experts.
    `tokens_per_second`: measured, so that it differs from run to run; it decides only between equal bytes.
    """

    parameters: int | dict[str, int] | None
    bytes: int | None
    tokens_per_second: float | None


def kind_of(name: str) -> str:
    return name.partition(":")[0]


@dataclass(frozen=True)
class Ruling:
    """The decision on contenders by their means on the same rows.

    `tied`: the best contender and every one whose paired interval against it contains 0, the cheapest first.
    `against`: the contender that the chosen one is compared with: the best, or the next one where it is the best.
    """

    means: Means
    unit: Unit
    usable: tuple[str, ...]
    best: str
    tied: tuple[str, ...]
    against: str | None
    costs: Mapping[str, Cost]

    @staticmethod
    def of(usable: list[str], means: Means, costs: Mapping[str, Cost], unit: Unit) -> "Ruling":
        by_mean = sorted(usable, key=lambda name: (means.value[name], _rank(name)))
        best = by_mean[0]
        tied = [name for name in by_mean if name == best or not means.difference(name, best).clear]
        first, *others = cheapest_first(tied, costs)
        rivals = [name for name in (tied if others else by_mean) if name != first]
        return Ruling(means, unit, tuple(by_mean), best, (first, *others), next(iter(rivals), None), costs)

    @property
    def use(self) -> str:
        return self.tied[0]

    def equal(self, name: str, other: str, within: float) -> bool:
        """Tell whether the whole interval of a difference is smaller than a share `within` of the best figure."""
        difference, best = self.means.difference(name, other), self.means.value[self.best]
        return self.unit.close(best + max(-difference.low, difference.high), best, within)

    def versus(self) -> Difference | None:
        """The loss of the chosen contender minus that of the one that it is compared with."""
        return None if self.against is None else self.means.difference(self.use, self.against)

    def bytes_of(self, name: str) -> int | None:
        return self.costs.get(name, {}).get("bytes")


def cheapest_first(names: list[str], costs: Mapping[str, Cost]) -> list[str]:
    """Sort by active bytes, then by speed; where one of either is unknown or equal, the simplest to serve first."""
    ordered = sorted(names, key=_rank)
    sizes = [costs.get(name, {}).get("bytes") for name in ordered]
    if None in sizes:
        return ordered
    speeds = {name: costs[name].get("tokens_per_second") for name in ordered}

    def key(name: str) -> tuple[int, float]:
        alike = [speeds[other] for other in ordered if costs[other]["bytes"] == costs[name]["bytes"]]
        return costs[name]["bytes"] or 0, 0.0 if None in alike else -(speeds[name] or 0.0)

    return sorted(ordered, key=key)


def _rank(name: str) -> int:
    return [*USABLE].index(kind_of(name))
