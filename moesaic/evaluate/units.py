"""What contenders are compared in, and how that reads: nats of language, scores of classification.

Knows nothing about contenders. Whatever the unit, a contender's value is a loss: lower is better.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any


class Unit(ABC):
    """How losses are read."""

    key: str
    """Where the figures that are shown lie in a control of evaluation.json, by domain and for `all`."""
    words: str
    """What the figures are."""
    rises: bool
    """Whether a larger figure is better."""

    @abstractmethod
    def shown(self, loss: float) -> str:
        """A loss as a sentence tells it."""

    @abstractmethod
    def figure(self, loss: float) -> float:
        """A loss as the figure that is shown."""

    @abstractmethod
    def close(self, loss: float, best: float, within: float) -> bool:
        """Whether a loss is within a share of the best one."""

    @abstractmethod
    def share(self, difference: float, than: float) -> float:
        """A difference of losses as a share of what the other one is worth."""


class Nats(Unit):
    """Nats per token."""

    key, words, rises = "nats", "nats per token", False

    def shown(self, loss: float) -> str:
        return f"{loss:.3f} nats per token"

    def figure(self, loss: float) -> float:
        return loss

    def close(self, loss: float, best: float, within: float) -> bool:
        return loss <= best * (1 + within)

    def share(self, difference: float, than: float) -> float:
        return difference / than


class Score(Unit):
    """The mean over the tasks of the first metric of each; the loss is what it lacks to 1."""

    key, words, rises = "score", "mean score", True

    def shown(self, loss: float) -> str:
        return f"a mean score of {1 - loss:.3f}"

    def figure(self, loss: float) -> float:
        return 1 - loss

    def close(self, loss: float, best: float, within: float) -> bool:
        return 1 - loss >= (1 - best) - within * abs(1 - best)

    def share(self, difference: float, than: float) -> float:
        return difference / abs(1 - than) if than != 1 else float("inf")


NATS, SCORE = Nats(), Score()
UNITS: dict[str, Unit] = {unit.key: unit for unit in (NATS, SCORE)}


def unit_of(evaluation: Mapping[str, Any]) -> Unit:
    """What the contenders of an evaluation are compared in; the first evaluations did not say it."""
    return UNITS[evaluation.get("measure", NATS.key)]


def ranked(evaluation: Mapping[str, Any]) -> list[str]:
    """The contenders of an evaluation, the best first."""
    unit, controls = unit_of(evaluation), evaluation["controls"]
    return sorted(controls, key=lambda name: controls[name][unit.key]["all"] * (-1 if unit.rises else 1))
