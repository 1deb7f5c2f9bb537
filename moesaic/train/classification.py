"""Classification: the loss of a classifier on rows with labels, and its metrics on held-out rows.

Knows nothing about optimisers or where rows come from.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F

from moesaic.data.answers import LabelledTokens, targets_of
from moesaic.data.batches import by_length
from moesaic.model.classifier import Classifier
from moesaic.model.features import Prompts
from moesaic.ops.metrics import metric, tallies
from moesaic.routing import Gates
from moesaic.sections.glue import Metric
from moesaic.train.mixture_loss import Nats, Weighed, frozen

NATS = 1e-6  # weight of a nat against the score: nats decide between equal scores only


@dataclass(frozen=True)
class Measured:
    """Metrics of each task, in the task's order, and nats per row over all tasks."""

    metrics: dict[str, dict[Metric, float]]
    nats: float

    @property
    def score(self) -> float:
        """The mean over the tasks of the first metric of each."""
        return sum(next(iter(own.values())) for own in self.metrics.values()) / len(self.metrics)

    @property
    def loss(self) -> float:
        """Lower is better: the score decides, nats break ties."""
        return NATS * min(self.nats, 50.0) - self.score

    @property
    def facts(self) -> dict[str, float]:
        """All figures for a manifest: the metrics of a single task, or the score of each of several."""
        (first, *more) = self.metrics.values()
        own = {task: next(iter(some.values())) for task, some in self.metrics.items()} if more else first
        figures = {f"validation_{name}": value for name, value in own.items()}
        return {"validation_score": self.score, **figures, "validation_nats": self.nats}

    def __str__(self) -> str:
        (first, *more) = self.metrics.values()
        figures = {"score": self.score} if more else first
        return ", ".join(f"{name} {value:.3f}" for name, value in figures.items()) + f", {self.nats:.3f} nats a row"


def batched(rows: Sequence[LabelledTokens], pad: int, device: torch.device | None = None) -> Prompts:
    ids, types = [row.ids for row in rows], [row.types for row in rows]
    return Prompts.pad(ids, [row.text for row in rows], device, types=types, with_id=pad)


def loss_of(
    classifier: Classifier, gates: Callable[[int], Gates], pad: int
) -> Callable[[Sequence[LabelledTokens]], tuple[Tensor, int]]:
    def loss(rows: Sequence[LabelledTokens]) -> tuple[Tensor, int]:
        found = classifier(batched(rows, pad, classifier.device), gates(len(rows)))
        return F.nll_loss(found, targets_of(rows, classifier.device), reduction="sum"), len(rows)

    return loss


def labels(classifier: Classifier, rows: Sequence[LabelledTokens], pad: int) -> Weighed:
    """The nats of each row's label under a frozen classifier of all experts."""

    def nats_of(some: list[LabelledTokens], gates: Gates) -> Nats:
        found = classifier(batched(some, pad, classifier.device), gates)
        nats = F.nll_loss(found, targets_of(some, classifier.device), reduction="none")
        return nats.sum(), nats, torch.ones(len(some), dtype=torch.long)

    return frozen(rows, nats_of, next(classifier.heads.parameters()))


@torch.no_grad()
def measure(
    classifier: Classifier,
    gates: Callable[[int], Gates],
    tasks: Mapping[str, Sequence[LabelledTokens]],
    batch: int,
    pad: int,
    metrics: Mapping[str, Sequence[Metric]],
    counts: Mapping[str, int],
    positive: Mapping[str, int],
) -> Measured:
    """The metrics of rows by task; `counts`: the number of labels of each task, in the classifier's order; `positive`:
    the label of its f1, where it is that of one label.

    Rows of similar length share a batch; the same rows in the same batches give the same bits.
    """
    found, nats, start = dict[str, dict[Metric, float]](), 0.0, 0
    for task, rows in tasks.items():
        predicted = np.zeros(len(rows), dtype=np.int64)
        for places in by_length([len(row.ids) for row in rows], batch):
            some = [rows[place] for place in places]
            logs = classifier(batched(some, pad, classifier.device), gates(len(some)))
            nats += F.nll_loss(logs, targets_of(some, classifier.device), reduction="sum").item()
            predicted[places] = logs.argmax(-1).cpu().numpy()
        truth = np.array([row.label - start for row in rows])
        sums = tallies(truth, own_of(predicted, start, counts[task]), counts[task]).sum(0)
        found[task] = {name: float(metric(name, sums, positive.get(task))) for name in metrics[task]}
        start += counts[task]
    return Measured(found, nats / sum(map(len, tasks.values())))


def own_of(predicted: Int[np.ndarray, " n"], start: int, count: int) -> Int[np.ndarray, " n"]:
    """Indices among all labels as indices among those of one task; -1 for a label of another task."""
    own = predicted - start
    return np.where((own >= 0) & (own < count), own, -1)
