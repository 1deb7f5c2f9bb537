"""Units in which contenders are compared: nats of language, scores of classification.

Knows nothing about models. In every unit the value of a contender is a loss: lower is better.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesaic.files import read_sealed
from moesaic.files.manifest import require_types


@dataclass(frozen=True)
class Unit:
    """How readers see losses: as they are, or as scores, where the loss is what a score lacks to 1."""

    key: str
    """Key of the figures in a control of evaluation.json, by domain and for `all`."""
    words: str
    sentence: str
    """A figure in a sentence."""
    rises: bool
    """Whether a larger figure is better."""

    def figure(self, loss: float) -> float:
        return 1 - loss if self.rises else loss

    def shown(self, loss: float) -> str:
        return self.sentence.format(self.figure(loss))

    def close(self, loss: float, best: float, within: float) -> bool:
        return loss <= best + within * abs(self.figure(best))

    def share(self, difference: float, than: float) -> float:
        """A difference of losses as a share of the figure of the loss `than`."""
        return difference / abs(self.figure(than)) if self.figure(than) else float("inf")


NATS = Unit("nats", "nats per token", "{:.3f} nats per token", rises=False)
SCORE = Unit("score", "mean score", "a mean score of {:.3f}", rises=True)
UNITS = {unit.key: unit for unit in (NATS, SCORE)}


def read_evaluation(path: Path) -> dict[str, Any]:
    """Read evaluation.json; WeightsError unless it is as it was written, with a unit that is known."""
    found = read_sealed(path)
    require_types(path, found, {"measure?": (*UNITS,)})
    return found


def unit_of(evaluation: Mapping[str, Any]) -> Unit:
    """The unit of an evaluation; the first evaluations did not name it."""
    return UNITS[evaluation.get("measure", NATS.key)]


def ranked(evaluation: Mapping[str, Any]) -> list[str]:
    unit, controls = unit_of(evaluation), evaluation["controls"]
    return sorted(controls, key=lambda name: controls[name][unit.key]["all"] * (-1 if unit.rises else 1))


def size(count: float) -> str:
    """A number of bytes, for example `8.1 MB`."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if abs(count) >= scale:
            return f"{count / scale:,.1f} {unit}"
    return f"{count:,.0f} bytes"


def label(contender: str) -> str:
    """The name that readers see; the key of the mixture in evaluation.json is `router`."""
    return "mixture" if contender == "router" else contender
