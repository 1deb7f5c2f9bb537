"""Grades of the answers that contenders give to test rows with labels, and the costs of these contenders.

Knows nothing about how contenders are compared, nor how they were trained.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from moesaic.artefacts.adapter import StoredExpert
from moesaic.compose.classifier import StoredClassifier
from moesaic.data.answers import LabelledTokens, targets_of
from moesaic.data.batches import by_length
from moesaic.data.rows import Example
from moesaic.evaluate.grades import Grades
from moesaic.evaluate.ruling import Cost
from moesaic.evaluate.statistics import Means
from moesaic.evaluate.verdict import with_derived
from moesaic.kinds.gates import Weights
from moesaic.kinds.parameters import num_parameters
from moesaic.model.classifier import Classifier
from moesaic.ops.metrics import Metric
from moesaic.routing import Gates
from moesaic.train.classification import batched, own_of

ABSTAINED = -1


@dataclass(frozen=True)
class Sheet:
    """The test rows of every data set in their order, the number of its labels, its metrics and the label of its f1."""

    rows: Mapping[str, list[LabelledTokens]]
    counts: Mapping[str, int]
    metrics: Mapping[str, tuple[Metric, ...]]
    positive: Mapping[str, int]

    @property
    def size(self) -> int:
        return sum(map(len, self.rows.values()))

    @torch.inference_mode()
    def grade(self, classifier: Classifier, weights: Weights, batch: int, pad: int) -> Grades:
        """Grade a classifier, which answers each row by the most probable of all labels of all data sets.

        A row for which no expert is chosen has no answer. Rows of like length share a batch, to save time.
        """
        every = [row for some in self.rows.values() for row in some]
        nats, said = np.zeros(len(every)), np.zeros(len(every), dtype=np.int64)
        for chosen in by_length([len(row.ids) for row in every], batch):
            some = [every[i] for i in chosen]
            gates = Gates.of(weights[chosen].float().to(classifier.device))
            logs = classifier(batched(some, pad, classifier.device), gates).cpu().double()
            nats[chosen] = -logs.gather(1, targets_of(some)[:, None])[:, 0].numpy()
            said[chosen] = torch.where(weights[chosen].sum(-1).cpu() > 0, logs.argmax(-1), ABSTAINED).numpy()
        return self.graded(nats, said)

    def graded(self, nats: np.ndarray, said: np.ndarray) -> Grades:
        """Grade answers among all labels, in the order of the rows."""
        truth, own, first, start = dict[str, np.ndarray](), dict[str, np.ndarray](), 0, 0
        for name, some in self.rows.items():
            truth[name] = np.array([row.label for row in some]) - start
            own[name] = own_of(said[first : first + len(some)], start, self.counts[name])
            first, start = first + len(some), start + self.counts[name]
        groups = [row.group for some in self.rows.values() for row in some]
        return Grades.of(nats, truth, own, self.counts, self.metrics, groups, self.positive)

    def majority(self, domains: Mapping[str, tuple[Sequence[str], Sequence[Example]]]) -> Grades:
        """Grade the most frequent label of each data set, given its labels and training rows.

        Nats are by frequencies, each label counted once more than it occurs.
        """
        nats, said, start = list[float](), list[int](), 0
        for name, some in self.rows.items():
            labels, train = domains[name]
            seen = Counter(example.response for example in train)
            counts = np.array([seen[label] for label in labels])
            logs = np.log((counts + 1) / (counts.sum() + len(counts)))
            nats += [-float(logs[row.label - start]) for row in some]
            said += [start + int(counts.argmax())] * len(some)
            start += len(counts)
        return self.graded(np.array(nats), np.array(said))

    def unanswered(self) -> Grades:
        """Grade rows on which a router abstains: no answer, and all labels alike."""
        spread = np.log(sum(self.counts.values()))
        return self.graded(np.full(self.size, spread), np.full(self.size, ABSTAINED))


def counted(base: nn.Module, stored: StoredClassifier, weights: Weights) -> dict[str, int]:
    """Count parameters: all, those of each part, and those that answer one row, on average over the decisions."""
    adapters, heads = ([*sizes] for sizes in zip(*sizes_of(stored).values(), strict=True))
    own, routed = num_parameters(base), stored.model.router.num_parameters
    shares = (weights > 0).double().mean(0).tolist()
    chosen = sum((a + h) * share for a, h, share in zip(adapters, heads, shares, strict=True))
    trained = sum(adapters) + sum(heads) + routed
    return {
        "total": own + trained,
        "base": own,
        "experts": sum(adapters),
        "heads": sum(heads),
        "router": routed,
        "trained": trained,
        "active": own + routed + round(chosen),
    }


def sizes_of(stored: StoredClassifier) -> dict[str, tuple[int, int]]:
    return {name: parameters_of(stored.experts[name]) for name in stored.model.names}


def parameters_of(expert: StoredExpert) -> tuple[int, int]:
    """The parameters of an expert's adapter and of its head."""
    return expert.adapter.num_parameters, expert.head.num_parameters if expert.head else 0


def costs(
    base: nn.Module, stored: StoredClassifier, counts: Mapping[str, int], controls: Mapping[str, StoredExpert]
) -> dict[str, Cost]:
    """Parameters and bytes that answer one row, for the mixture and each alternative to it."""
    own = counts["base"]
    parameters = {"average": own + counts["heads"], "router": counts["active"]}
    parameters |= {f"expert:{name}": own + sum(sizes) for name, sizes in sizes_of(stored).items()}
    parameters |= {name: own + sum(parameters_of(control)) for name, control in controls.items()}
    width = next(base.parameters()).element_size()
    return {name: Cost(parameters=count, bytes=count * width) for name, count in parameters.items()}


def pooled(scores: Mapping[str, Grades], seed: int) -> dict[str, dict[str, Any]]:
    """The share of all rows that each contender answers right, with its interval and its difference to the router."""
    errors = {name: one.errors() for name, one in with_derived(scores).items()}
    means = Means.of(errors, seed=seed)
    found = {}
    for name in errors:
        versus = means.difference(name, "router") if name != "router" and "router" in errors else None
        found[name] = {
            "value": 1 - means.value[name],
            "interval": sorted(1 - end for end in means.interval(name)),
            "versus_router": versus and {"difference": versus.mean, "interval": [versus.low, versus.high]},
        }
    return found
