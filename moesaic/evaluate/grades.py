"""Grades: the answers of one contender to rows with labels, the metrics of each task, and their mean.

Knows nothing about models. `Grades` does for labels what `statistics.Scores` does for nats.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from moesaic.errors import DataError, nearest
from moesaic.evaluate.statistics import ALL, Scores, mean_nats
from moesaic.evaluate.units import SCORE, Unit
from moesaic.ops.metrics import metric, tallies
from moesaic.sections.glue import Metric

WRONG = 1e6
"""Nats that a wrong answer costs where the best answer to a row is chosen: more than any right one."""


@dataclass(frozen=True, eq=False)
class Grades:
    """Nats of every row's label, and by task the tallies of its rows (see `ops.metrics`).

    `metrics`: of each task; the first is its score.
    `positive`: the label of a task's f1, where that is of one label. Rows are sorted by task, tasks in the
    order of `tallies`.
    """

    nats: Float[np.ndarray, " n"]
    tallies: Mapping[str, Float[np.ndarray, "_ c"]]
    metrics: Mapping[str, tuple[Metric, ...]]
    groups: list[str]
    positive: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.groups) != len(self.nats) or sum(map(len, self.tallies.values())) != len(self.nats):
            raise DataError("the columns of the grades differ in length", expected=len(self.nats), got=len(self.groups))
        if not np.isfinite(self.nats).all():
            raise DataError("a row's nats are not finite", got=f"row {int(np.argmin(np.isfinite(self.nats)))}")

    @staticmethod
    def of(
        nats: Float[np.ndarray, " n"],
        truth: Mapping[str, Int[np.ndarray, " _"]],
        said: Mapping[str, Int[np.ndarray, " _"]],
        labels: Mapping[str, int],
        metrics: Mapping[str, tuple[Metric, ...]],
        groups: list[str],
        positive: Mapping[str, int] | None = None,
    ) -> "Grades":
        """Grade answers (`said`) by the true labels of rows, by task; -1 is an answer outside the task's labels."""
        return Grades(nats, {t: tallies(truth[t], said[t], labels[t]) for t in truth}, metrics, groups, positive or {})

    @property
    def unit(self) -> Unit:
        return SCORE

    @property
    def domains(self) -> list[str]:
        return [task for task, rows in self.tallies.items() for _ in range(len(rows))]

    def rows(self, domain: str = ALL) -> Bool[np.ndarray, " n"]:
        known = [*self.tallies]
        if domain not in (ALL, *known):
            raise DataError("no row of this domain", expected=known, got=domain, hint=nearest(domain, known))
        return np.array([domain in (ALL, own) for own in self.domains])

    def right(self) -> Float[np.ndarray, " n"]:
        """1 for a right answer, 0 for a wrong one; a fraction where several contenders are blended."""
        return np.concatenate([_right(rows) for rows in self.tallies.values()])

    def columns(self, domain: str) -> Float[np.ndarray, "_ c"]:
        """Columns whose sums give the score of a task: tallies, or for accuracy right answers and rows."""
        rows = self.tallies[domain]
        if self.metrics[domain][0] != "accuracy":
            return rows
        return np.stack([_right(rows), np.ones(len(rows))], 1)

    def loss(self, sums: Mapping[str, Float[np.ndarray, "r c"]]) -> Float[np.ndarray, " r"]:
        """1 - the mean score of the tasks, from sums of their columns."""
        scores = [
            some[:, 0] / some[:, 1]
            if self.metrics[task][0] == "accuracy"
            else metric(self.metrics[task][0], some, self.positive.get(task))
            for task, some in sums.items()
        ]
        return 1 - np.mean(scores, 0)

    def mean(self, domain: str = ALL) -> float:
        tasks = [*self.tallies] if domain == ALL else [domain]
        return float(self.loss({task: self.columns(task).sum(0)[None] for task in tasks})[0])

    def over_domains(self) -> "Grades":
        """These grades: their mean is the mean over tasks already."""
        return self

    def same_rows(self, other: "Grades") -> bool:
        alike = self.groups == other.groups and self.domains == other.domains
        return alike and all(np.array_equal(_true(a), _true(other.tallies[task])) for task, a in self.tallies.items())

    @property
    def merit(self) -> Float[np.ndarray, " n"]:
        """The lower, the better the answer to a row: right before wrong, then fewer nats."""
        return (1 - self.right()) * WRONG + self.nats

    def picked(self, parts: Sequence["Grades"], which: Int[np.ndarray, " n"]) -> "Grades":
        bounds = np.cumsum([0, *map(len, self.tallies.values())])
        found = {}
        for task, first, last in zip(self.tallies, bounds, bounds[1:], strict=False):
            every = np.stack([part.tallies[task] for part in parts])
            found[task] = every[which[first:last], np.arange(last - first)]
        nats = np.stack([part.nats for part in parts])[which, np.arange(len(which))]
        return replace(self, nats=nats, tallies=found)

    def blended(self, parts: Sequence["Grades"]) -> "Grades":
        """The exact expectation of drawing one of the parts evenly for every row."""
        mean = {task: np.mean([part.tallies[task] for part in parts], 0) for task in self.tallies}
        return replace(self, nats=np.mean([part.nats for part in parts], 0), tallies=mean)

    def errors(self) -> Scores:
        """1 for each wrong row of any task: the mean is 1 - the pooled accuracy."""
        return Scores(1 - self.right(), np.ones(len(self.nats)), self.domains, self.groups)

    def figures(self) -> dict[str, Any]:
        """Scores, metrics and nats per row of each task; for `all` the mean score."""
        tasks = [*self.tallies]
        losses = Scores(self.nats, np.ones(len(self.nats)), self.domains, self.groups)
        return {
            "score": {task: 1 - self.mean(task) for task in (*tasks, ALL)},
            "metrics": {
                t: {m: float(metric(m, self.tallies[t].sum(0), self.positive.get(t))) for m in self.metrics[t]}
                for t in tasks
            },
            "nats": {task: mean_nats(losses, task) for task in (*tasks, ALL)},
        }


def _labels(rows: Float[np.ndarray, "_ c"]) -> int:
    return (rows.shape[1] - 1) // 3


def _true(rows: Float[np.ndarray, "_ c"]) -> Float[np.ndarray, "_ k"]:
    return rows[:, : _labels(rows)]


def _right(rows: Float[np.ndarray, "_ c"]) -> Float[np.ndarray, " _"]:
    return rows[:, 2 * _labels(rows) + 1 :].sum(1)
