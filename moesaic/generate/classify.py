"""Texts -> labels by a mixture of experts that classify, with probabilities and routing.

Knows nothing about files, nor how mixtures are made.
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
ROWS = 32  # rows in a batch


@dataclass(frozen=True)
class Classification:
    """The label of a row, its task, its probability among the labels of all tasks, and all of these by `task/label`."""

    label: str
    task: str
    probability: float
    probabilities: dict[str, float]
    routing: RoutingReport


@torch.inference_mode()
def classified(stored: StoredClassifier, rows: Sequence[Row], expert: str | None) -> list[Classification]:
    """An answer for each row; `expert` replaces the router's choice."""
    found = []
    for start in range(0, len(rows), ROWS):
        some = batched(stored, rows[start : start + ROWS])
        forced = None if expert is None else only(stored.model.names, expert, len(some.texts), some.ids.device)
        answers = stored.model.classify(some, forced)
        reports = RoutingReport.each(stored.model.names, answers.routing)
        for log_probabilities, routing in zip(answers.log_probabilities.cpu(), reports, strict=True):
            shares = dict(zip(stored.model.classifier.labels, log_probabilities.double().exp().tolist(), strict=True))
            best = max(shares, key=shares.__getitem__)
            task, _, label = best.partition("/")
            found.append(Classification(label, task, shares[best], shares, routing))
    return found


@torch.inference_mode()
def routed(stored: StoredClassifier, rows: Sequence[Row]) -> list[RoutingReport]:
    parts = [stored.model.route(batched(stored, rows[at : at + ROWS])) for at in range(0, len(rows), ROWS)]
    return [report for part in parts for report in RoutingReport.each(stored.model.names, part)]


def batched(stored: StoredClassifier, rows: Sequence[Row]) -> Prompts:
    for row in rows:
        if not 1 <= len(row) <= 2 or not all(text.strip() for text in row):
            raise DataError("nothing to classify", expected="one or two texts that are not empty", got=repr(row))
    read = [stored.base.writer(row, stored.length) for row in rows]
    ids, types, texts = [one.ids for one in read], [one.types for one in read], ["\n".join(row) for row in rows]
    return Prompts.pad(ids, texts, stored.model.classifier.device, types=types, with_id=stored.base.pad)


def only(names: tuple[str, ...], expert: str, n: int, device: torch.device) -> Routing:
    if expert not in names:
        hint = "the base has no labels" if expert == BASE else nearest(expert, [*names])
        raise RecipeError("no such expert", field="expert", expected=" or ".join(names), got=expert, hint=hint)
    weights = fixed(names.index(expert), n, len(names)).to(device)
    return Routing(weights, weights.log())
