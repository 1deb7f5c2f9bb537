"""Figures of continual learning, from the scores on every task after each task of a sequence.

Knows nothing about models or strategies. R[t, i] is the score on task i after training task t, the higher the better;
both count from 0. Leading axes r, such as the resamples of a bootstrap, pass through every function.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from moesaic.errors import DataError

Matrix = Float[np.ndarray, "*r t i"]
Row = Float[np.ndarray, "*r i"]
Figure = Float[np.ndarray, "*r"]


def overall(scores: Matrix) -> Figure:
    """OP: the mean score on all tasks after the last one."""
    return np.asarray(scores[..., -1, :].mean(-1))


def backward_trace(scores: Matrix) -> Figure:
    """BWT as TRACE defines it (arXiv 2310.06762): the mean over all tasks of R[T, i] - R[i, i]."""
    return np.asarray(change(scores).mean(-1))


def backward_gem(scores: Matrix) -> Figure:
    """BWT as GEM defines it (arXiv 1706.08840): the mean over all tasks but the last of R[T, i] - R[i, i]."""
    return np.asarray(change(scores)[..., :-1].mean(-1))


def change(scores: Matrix) -> Row:
    """R[T, i] - R[i, i]: how the score on each task has changed since it was trained."""
    return scores[..., -1, :] - np.diagonal(scores, axis1=-2, axis2=-1)


def forgetting(scores: Matrix) -> Row:
    """By how much the score on each task lies below its best after any task (arXiv 1801.10112); never below 0."""
    return scores.max(-2) - scores[..., -1, :]


def forward(scores: Matrix, before: Row) -> Figure:
    """FWT (GEM): the mean over all tasks but the first of R[i - 1, i] - R[0, i]: the change before a task is trained.

    `before`: R[0, i], the scores before the first task.
    """
    return np.asarray((np.diagonal(scores, 1, -2, -1) - before[..., 1:]).mean(-1))


def general_change(scores: Float[np.ndarray, "*r t x"], before: Float[np.ndarray, "*r x"]) -> Figure:
    """The mean over sets of other text of their score after the last task minus that before the first."""
    return np.asarray((scores[..., -1, :] - before).mean(-1))


@dataclass(frozen=True, eq=False)
class Sequence:
    """The scores of one strategy: on the tasks, and on x sets of other text, after each task and before the first."""

    tasks: Matrix
    tasks_before: Row
    others: Float[np.ndarray, "*r t x"]
    others_before: Float[np.ndarray, "*r x"]

    def __post_init__(self) -> None:
        count, width = self.tasks.shape[-2:]
        if count != width or count < 2:
            what, expected = "not the scores of a sequence of tasks", "2 tasks or more, and a row after each"
            raise DataError(what, expected=expected, got=f"{count} rows of {width} tasks")

    def figures(self) -> dict[str, Figure]:
        """Every figure by its name in files; the change on other text is absent without such text."""
        found = {
            "OP": overall(self.tasks),
            "BWT_TRACE": backward_trace(self.tasks),
            "BWT_GEM": backward_gem(self.tasks),
            "forgetting": np.asarray(forgetting(self.tasks)[..., :-1].mean(-1)),
            "FWT": forward(self.tasks, self.tasks_before),
        }
        if self.others.shape[-1]:
            found["general_change"] = general_change(self.others, self.others_before)
        return found


DEFINITIONS: Mapping[str, str] = {
    "OP": "nats per token after the last task, as a mean over the tasks; lower is better",
    "BWT_TRACE": "the change of the score on a task since it was trained, as a mean over all tasks (TRACE); below 0 is "
    "forgetting",
    "BWT_GEM": "the same as a mean over all tasks but the last, whose change is 0 (GEM)",
    "forgetting": "the distance of the score on a task from its best after any task, as a mean over all tasks but the "
    "last",
    "FWT": "the change of the score on a task by the tasks before it, as a mean over all tasks but the first; above 0 "
    "is a gain",
    "general_change": "the change of the score on text of no task, from before the first task to after the last; above "
    "0 is a gain",
}
"""The definition of each figure, for people. A score is minus the nats per token."""
