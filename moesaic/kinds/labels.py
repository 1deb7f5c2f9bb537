"""Experts that classify: a course on rows with labels, chosen by the first metric of each task.

Knows nothing about routers, nor where experts lie.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moesaic.adapters import Adapter, attach, detach
from moesaic.artefacts.adapter import StoredExpert, load_expert
from moesaic.data.answers import LabelledTokens, encode_labelled
from moesaic.data.batches import Schedule
from moesaic.data.rows import Example
from moesaic.kinds.courses import Lesson, Made, Plan, adapted, alone, even
from moesaic.model.classifier import Classifier, Head, usual_shape
from moesaic.model.decoder import Decoder
from moesaic.model.encoder import Encoder
from moesaic.runs.jobs import threads
from moesaic.runs.workshop import Workshop
from moesaic.sections.sources import LabelledData
from moesaic.sections.tasks import Metric
from moesaic.train.classification import Measured, loss_of, measure

ANYONE = "it"
"""What the only expert of a classifier is called in training."""


class LabelCourse:
    """How an expert learns to classify: its adapter and, unless that is frozen, its head.

    Of several tasks, as a control has them, the labels are one space; an answer that is a label of another task is
    wrong.
    """

    def __init__(self, workshop: Workshop, plan: Plan):
        self.workshop, self.tasks = workshop, tuple(plan.train)
        self.labels = labels_of(workshop, self.tasks)
        self.train = self.encoded(plan.train, plan.settings.length)
        self.held_out = self.encoded(plan.validation, plan.settings.length)

    def encoded(self, examples: Mapping[str, list[Example]], length: int) -> dict[str, list[LabelledTokens]]:
        """The rows of each task, labels by their place among all of them."""
        writer, start = self.workshop.backbone.writer, 0
        found = {}
        for task, some in examples.items():
            own = self.workshop.domains[task].labels
            found[task] = encode_labelled(some, writer, length, own, start)
            start += len(own)
        return found

    def rows(self) -> dict[str, int]:
        train, validation = ([row for some in rows.values() for row in some] for rows in (self.train, self.held_out))
        cut = sum(row.truncated for row in (*train, *validation))
        return {"train": len(train), "validation": len(validation), "truncated": cut}

    def head(self, body: Decoder | Encoder, plan: Plan) -> Head:
        """The head as it is drawn, by the run's seed."""
        shape = usual_shape(body, self.workshop.pool, self.labels)
        head = Head.fresh(shape, body.config.hidden_size, torch.Generator().manual_seed(self.workshop.recipe.seed))
        return head.requires_grad_(not plan.frozen)

    def classifier(self, plan: Plan) -> tuple[Classifier, Adapter]:
        """A frozen base with a fresh adapter and a fresh head: the same at every call."""
        body, fresh = adapted(self.workshop, plan)
        return Classifier(body, {ANYONE: self.head(body, plan)}, self.workshop.pool), fresh

    def measured(self, classifier: Classifier, batch: int) -> Measured:
        """How well held-out rows are answered."""
        pad, metrics = self.workshop.backbone.pad, {task: metrics_of(self.workshop, task) for task in self.tasks}
        return measure(classifier, alone, self.held_out, batch, pad, metrics, self.workshop.counts)

    def lesson(self, plan: Plan) -> Lesson:
        settings, (classifier, _) = plan.settings, self.classifier(plan)
        schedule = Schedule(even([*self.train.values()]), settings.batch, self.workshop.recipe.seed)
        return Lesson(
            {name: p for name, p in classifier.named_parameters() if p.requires_grad},
            schedule,
            loss_of(classifier, alone, self.workshop.backbone.pad),
            lambda: self.measured(classifier, settings.batch).loss,
            schedule.names,
        )

    def made(self, plan: Plan, state: Mapping[str, Tensor], best: float) -> Made:
        """The expert; measured once more in the form that it is read in, so that figures come back exactly."""
        classifier, fresh = self.classifier(plan)
        classifier.load_state_dict(state, strict=False)
        (head,) = classifier.heads
        assert isinstance(head, Head)
        adapter = detach(classifier.body, fresh)
        found = self.measured(assembled(self.workshop, adapter, head), plan.settings.batch)
        return Made(adapter, head, found.facts, f"validation {found.told}")

    def logged(self, row: dict[str, Any]) -> dict[str, Any]:
        """With the score in the place of what the loop minimises; its rate is of rows."""
        named = {"validation": "score", "rate": "row_rate"}
        return {named.get(k, k): self.outcome(v) if k == "validation" else v for k, v in row.items()}

    def outcome(self, best: float) -> float:
        """The score, without the little that the nats have in what the loop minimises."""
        return round(-best, 5) + 0.0


def assembled(workshop: Workshop, adapter: Adapter, head: Head) -> Classifier:
    """A fresh base with one expert, as it is used: by its pairs."""
    body = workshop.fresh_body()
    attach(body, [adapter.lora()])
    return Classifier(body, {ANYONE: head}, workshop.pool).requires_grad_(False)


def stored_in(workshop: Workshop, folders: Mapping[str, Path]) -> dict[str, StoredExpert]:
    """The experts that lie there, held against the base and against the labels of their data."""
    base, domains = workshop.backbone, workshop.domains
    return {name: load_expert(at, base.fingerprint, base.body, domains[name].labels) for name, at in folders.items()}


def classifier_of(workshop: Workshop, folders: Mapping[str, Path]) -> Classifier:
    """The base with all experts that lie there, frozen."""
    experts, body = stored_in(workshop, folders), workshop.fresh_body()
    attach(body, [expert.lora for expert in experts.values()])
    heads = {name: expert.head for name, expert in experts.items() if expert.head}
    return Classifier(body, heads, workshop.pool).requires_grad_(False)


def labels_of(workshop: Workshop, tasks: tuple[str, ...]) -> tuple[str, ...]:
    """The labels of one task as they are, of several as `task/label`."""
    if len(tasks) == 1:
        return workshop.domains[tasks[0]].labels
    return tuple(f"{task}/{label}" for task in tasks for label in workshop.domains[task].labels)


def metrics_of(workshop: Workshop, task: str) -> tuple[Metric, ...]:
    """What is measured of a task."""
    data = workshop.recipe.experts[task].data
    assert isinstance(data, LabelledData)
    return data.metrics


def verified(workshop: Workshop, plan: Plan, folder: Path, refuse: Any) -> dict[str, Any]:
    """The validation figures of an expert that is read back; `refuse` where they are not exactly as it says.

    Computed with one thread, as in training: with more, sums are added up in another order.
    """
    stored = load_expert(folder, workshop.base_fingerprint)
    course = LabelCourse(workshop, replace(plan, train={task: [] for task in plan.train}))
    assert stored.head is not None
    with threads(1):
        found = course.measured(assembled(workshop, stored.adapter, stored.head), plan.settings.batch)
    said = {key: stored.manifest["metrics"].get(key) for key in found.facts}
    for key, value in found.facts.items():
        if value != said[key]:
            refuse(f"metrics.{key}", repr(said[key]), repr(value))
    return {"metrics": found.facts, "manifest": said}
