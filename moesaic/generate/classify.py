"""Texts -> labels, by a mixture of experts that classify: what each says, how sure it is, and who was chosen to.

Knows nothing about files, nor how the mixture was made.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from moesaic.compose.classifier import StoredClassifier
from moesaic.errors import DataError, RecipeError, nearest
from moesaic.generate.request import BASE, RoutingReport
from moesaic.model.features import Prompts
from moesaic.routing import Routing
from moesaic.routing.controls import fixed

Row = tuple[str, ...]
"""A text, or two."""

ROWS = 32


@dataclass(frozen=True)
class Classification:
    """The label of a row, whose task that is, and its probability among the labels of all tasks.

    `probabilities`: of all labels, by `task/label`.
    """

    label: str
    task: str
    probability: float
    probabilities: dict[str, float]
    routing: RoutingReport


@torch.inference_mode()
def classified(stored: StoredClassifier, rows: Sequence[Row], expert: str | None) -> list[Classification]:
    """An answer for each row; `expert`: who gives it, in the router's place."""
    found = []
    for start in range(0, len(rows), ROWS):
        some = written(stored, rows[start : start + ROWS])
        forced = None if expert is None else only(stored.model.names, expert, len(some.texts))
        answers = stored.model.classify(some, forced)
        reports = reported(stored.model.names, answers.routing)
        labels = [(task, label) for task, head in heads(stored) for label in head]
        for log_probabilities, routing in zip(answers.log_probabilities, reports, strict=True):
            shares = log_probabilities.double().exp().tolist()
            task, label = labels[best := max(range(len(shares)), key=shares.__getitem__)]
            every = {f"{task}/{label}": share for (task, label), share in zip(labels, shares, strict=True)}
            found.append(Classification(label, task, shares[best], every, routing))
    return found


@torch.inference_mode()
def routed(stored: StoredClassifier, rows: Sequence[Row]) -> list[RoutingReport]:
    """Who would answer each row."""
    parts = [stored.model.route(written(stored, rows[at : at + ROWS])) for at in range(0, len(rows), ROWS)]
    return [report for part in parts for report in reported(stored.model.names, part)]


def heads(stored: StoredClassifier) -> list[tuple[str, tuple[str, ...]]]:
    """The labels of every expert, in the order of the mixture."""
    found = [(name, stored.experts[name].head) for name in stored.model.names]
    return [(name, head.shape.labels) for name, head in found if head]


def written(stored: StoredClassifier, rows: Sequence[Row]) -> Prompts:
    """Rows as the model reads them."""
    for row in rows:
        if not 1 <= len(row) <= 2 or not all(text.strip() for text in row):
            raise DataError("nothing to classify", expected="a text, or two, that are not empty", got=repr(row))
    read = [stored.base.writer(row, stored.length) for row in rows]
    ids, types, texts = [one.ids for one in read], [one.types for one in read], ["\n".join(row) for row in rows]
    return Prompts.pad(ids, texts, types=types, with_id=stored.base.pad)


def only(names: tuple[str, ...], expert: str, n: int) -> Routing:
    """Every row on one expert."""
    if expert not in names:
        hint = "the base has no labels" if expert == BASE else nearest(expert, [*names])
        raise RecipeError("no such expert", field="expert", expected=" or ".join(names), got=expert, hint=hint)
    weights = fixed(names.index(expert), n, len(names))
    return Routing(weights, weights.log())


def reported(names: tuple[str, ...], routing: Routing) -> list[RoutingReport]:
    """Decisions by name."""
    return [
        RoutingReport(dict(zip(names, weights, strict=True)), names[best] if best >= 0 else BASE)
        for weights, best in zip(routing.weights.tolist(), routing.best.tolist(), strict=True)
    ]
