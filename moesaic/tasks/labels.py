"""The task of classifying: rows have labels; experts are chosen and judged by the metrics of their data.

The labels of several data sets, as a control has them, are one space; a label of another data set is a wrong answer.
Knows nothing about which parts a run has.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any, cast

import torch
from torch import Generator, Tensor

from moesaic.adapters import Adapter, attach
from moesaic.artefacts.adapter import StoredExpert, load_expert
from moesaic.artefacts.backbone import Backbone
from moesaic.compose.classifier import StoredClassifier, load_classifier
from moesaic.data.answers import LabelledTokens, encode_labelled
from moesaic.data.batches import Schedule
from moesaic.data.cuts import cut_of, told, truncated
from moesaic.data.rows import Example
from moesaic.evaluate.grades import Grades
from moesaic.evaluate.statistics import Judged
from moesaic.hardware import Compute
from moesaic.kinds.gates import Weights, alone, beside
from moesaic.kinds.kind import Facts, Started
from moesaic.model.classifier import Classifier, Head, usual_shape
from moesaic.model.features import Prompts
from moesaic.ops.metrics import Metric
from moesaic.routing import controls
from moesaic.runs.jobs import threads
from moesaic.tasks import grading
from moesaic.tasks.grading import Sheet
from moesaic.tasks.task import Findings, Made, Objective, Plan, Task, Trainer, even, trainable
from moesaic.train import classification
from moesaic.train.classification import Measured, batched, measure
from moesaic.train.execution import arrange
from moesaic.train.mixture_loss import Weighed

ONLY = "it"
"""The name of the only expert of a classifier in training."""


class LabelTrainer(Trainer):
    """Trains an expert to classify: its adapter and, unless that is frozen, its head."""

    def __init__(self, task: "LabelTask", plan: Plan):
        self.task, self.names = task, tuple(plan.train)
        self.labels = task.labels_of(self.names)
        self.length = plan.settings.length
        self.train = self.encoded(plan.train, self.length)
        self.held_out = self.encoded(plan.validation, self.length)

    def encoded(self, examples: Mapping[str, Sequence[Example]], length: int) -> dict[str, list[LabelledTokens]]:
        return {name: self.task.encoded(some, length, name, self.names) for name, some in examples.items()}

    def rows(self) -> dict[str, Any]:
        train, validation = all_of(self.train), all_of(self.held_out)
        counts = {"train": len(train), "validation": len(validation)}
        return {**counts, "truncated": truncated([*train, *validation]), **cut_of(train)}

    def cuts(self) -> str | None:
        return told("training", all_of(self.train), self.length)

    def spelled(self, text: str) -> str | None:
        return self.task.foundation.writer.spelled(text)

    def started(self, plan: Plan) -> tuple[Classifier, Head, Started[Adapter]]:
        """Put a fresh adapter and a fresh head over a frozen base: the same at every call."""
        body, seed, device = self.task.fresh().body, self.task.recipe.seed, self.task.compute.device
        started = plan.begin(body, seed)
        shape = usual_shape(body, self.task.pool, self.labels)
        head = Head.fresh(shape, body.config.hidden_size, Generator().manual_seed(seed))
        head.to(device).requires_grad_(not plan.frozen)
        return Classifier(body, {ONLY: head}, self.task.pool), head, started

    def measured(self, classifier: Classifier, batch: int) -> Measured:
        """Measure a classifier on the validation rows."""
        pad, metrics = self.task.foundation.pad, {name: self.task.metrics_of(name) for name in self.names}
        return measure(
            classifier,
            beside(classifier, alone),
            self.held_out,
            batch,
            pad,
            metrics,
            self.task.counts,
            self.task.positive,
        )

    def objective(self, plan: Plan) -> Objective:
        """Minimise the nats of the labels, the rows of small tasks repeated."""
        settings, (classifier, _, _) = plan.settings, self.started(plan)
        arrange(classifier.body, settings)
        schedule = Schedule(even([*self.train.values()]), settings.batch, self.task.recipe.seed)
        return Objective(
            trainable(classifier),
            schedule,
            classification.loss_of(classifier, beside(classifier, alone), self.task.foundation.pad),
            lambda: self.measured(classifier, settings.batch).loss,
            schedule.names,
            self.task.compute.dtype == torch.float16,
        )

    def made(self, plan: Plan, state: Mapping[str, Tensor], best: float) -> Made:
        """The expert, measured once more in the form in which it is read, so that its figures can be verified."""
        classifier, head, started = self.started(plan)
        classifier.load_state_dict(state, strict=False)
        adapter = started.take()
        found = self.measured(self.task.assembled(adapter, head), plan.settings.batch)
        return Made(adapter, head, found.facts, f"validation {found}")

    def values(self, plan: Plan, folder: Path) -> Mapping[str, Tensor]:
        stored, body = load_expert(folder, self.task.foundation.fingerprint), self.task.fresh().body
        plan.kind.resume(body, stored, plan.design)
        assert stored.head is not None
        head = stored.head.to(self.task.compute.device).requires_grad_(not plan.frozen)
        return trainable(Classifier(body, {ONLY: head}, self.task.pool))

    def logged(self, row: dict[str, Any]) -> dict[str, Any]:
        """A line with the score in place of the loop's objective; its rate counts rows."""
        named = {"validation": "score", "rate": "row_rate"}
        return {named.get(k, k): self.outcome(v) if k == "validation" else v for k, v in row.items()}

    def outcome(self, best: float) -> float:
        """The score, without the small share of the nats in the loop's objective."""
        return round(-best, 5) + 0.0


def all_of(domains: Mapping[str, list[LabelledTokens]]) -> list[LabelledTokens]:
    """The rows of all domains."""
    return [row for rows in domains.values() for row in rows]


class LabelTask(Task[LabelledTokens]):
    """Rows have labels, which experts answer with heads of their own."""

    chosen_by = 500  # a row holds less evidence than the many tokens of a text
    answers = True

    # --- the base

    @property
    def foundation(self) -> Backbone:
        return self.models.backbone

    def fresh(self, compute: Compute | None = None) -> Backbone:
        return self.models.fresh_backbone(compute or self.compute)

    # --- rows

    @property
    def counts(self) -> dict[str, int]:
        """The number of labels of each domain, in the order of all labels."""
        return {name: len(domain.labels) for name, domain in self.materials.domains.items()}

    def encoded(
        self, examples: Sequence[Example], length: int, domain: str, among: Sequence[str] = ()
    ) -> list[LabelledTokens]:
        """Rows of one domain, each label by its index among the labels of some domains (default: all)."""
        before = takewhile(lambda name: name != domain, among or self.counts)
        start, labels = sum(self.counts[name] for name in before), self.materials.domains[domain].labels
        return encode_labelled(self.watch(domain, examples), self.foundation.writer, length, labels, start)

    def prompts(self, rows: Sequence[LabelledTokens]) -> Prompts:
        return batched(rows, self.foundation.pad, self.compute.device)

    def texts(self, rows: Sequence[LabelledTokens]) -> list[str]:
        return [row.text for row in rows]

    def labels_of(self, names: Sequence[str]) -> tuple[str, ...]:
        """The labels of one data set by their own names, of several data sets by `name/label`."""
        domains = self.materials.domains
        if len(names) == 1:
            return domains[names[0]].labels
        return tuple(f"{name}/{label}" for name in names for label in domains[name].labels)

    def metrics_of(self, name: str) -> tuple[Metric, ...]:
        data = self.recipe.experts[name].data
        return data.metrics if data else ()

    @property
    def positive(self) -> dict[str, int]:
        """The label of the f1 of each data set whose recipe names one, as its index."""
        given = {name: self.recipe.experts[name].data for name in self.counts}
        named = {name: data.positive for name, data in given.items() if data and data.positive}
        return {name: self.materials.domains[name].labels.index(label) for name, label in named.items()}

    @property
    def definitions(self) -> dict[str, dict[str, str]]:
        """Names the label of the F1 of each data set."""
        names = {name: domain.labels for name, domain in self.materials.domains.items()}
        chosen = {name: 1 for name, labels in names.items() if len(labels) == 2} | self.positive
        return {
            name: {"f1": f"f1 of '{labels[chosen[name]]}'" if name in chosen else "f1: the mean over labels"}
            for name, labels in names.items()
            if "f1" in self.metrics_of(name)
        }

    @property
    def sheet(self) -> Sheet:
        """The test rows, as answers to them are graded."""
        return Sheet(
            self.test_rows, self.counts, {name: self.metrics_of(name) for name in self.test_rows}, self.positive
        )

    # --- experts

    def trainer(self, plan: Plan) -> Trainer:
        return LabelTrainer(self, plan)

    def identity(self, tasks: Sequence[str]) -> Facts:
        own = {name: [self.materials.domains[name].labels, self.metrics_of(name)] for name in tasks}
        positive = {name: index for name, index in self.positive.items() if name in tasks}
        return {"labels": {"tasks": own, "pool": self.pool, **({"positive": positive} if positive else {})}}

    def head_facts(self, plan: Plan) -> Facts:
        return {"head": {"pool": self.pool, "family": self.body.config.label_head.family, "trained": not plan.frozen}}

    def assembled(self, adapter: Adapter, head: Head) -> Classifier:
        """A fresh base with the pairs of one expert."""
        body = self.fresh().body
        attach(body, [adapter.lora()])
        return Classifier(body, {ONLY: head.to(self.compute.device)}, self.pool).requires_grad_(False)

    def verified(self, plan: Plan, folder: Path, refuse: Callable[[str, str, str], None]) -> dict[str, Any]:
        """Measure with one thread, as in training: with more, sums are added up in another order."""
        stored = load_expert(folder, self.foundation.fingerprint)
        trainer = LabelTrainer(self, replace(plan, train={name: [] for name in plan.train}))
        assert stored.head is not None
        with threads(1):
            found = trainer.measured(self.assembled(stored.adapter, stored.head), plan.settings.batch)
        said = {key: stored.manifest["metrics"].get(key) for key in found.facts}
        for key, value in found.facts.items():
            if value != said[key]:
                refuse(f"metrics.{key}", repr(said[key]), repr(value))
        return {"metrics": found.facts, "manifest": said}

    # --- mixtures

    def read_experts(self, folders: Mapping[str, Path]) -> dict[str, StoredExpert]:
        """Read the experts in these folders and check each against the base and the labels of its data."""
        base, domains = self.foundation, self.materials.domains
        return {n: load_expert(at, base.fingerprint, base.body, domains[n].labels) for n, at in folders.items()}

    def mixture_facts(self) -> Facts:
        labels = {name: list(domain.labels) for name, domain in self.materials.domains.items()}
        return {"labels": labels, "pool": self.pool, "length": self.recipe.train.length}

    @cached_property
    def mixture(self) -> StoredClassifier:
        return load_classifier(self.run.mixture_at, self.compute)

    def frozen_experts(self, folders: Mapping[str, Path]) -> Classifier:
        experts, body = self.read_experts(folders), self.fresh().body
        attach(body, [expert.lora for expert in experts.values()])
        heads = {name: expert.head.to(self.compute.device) for name, expert in experts.items() if expert.head}
        return Classifier(body, heads, self.pool).requires_grad_(False)

    def losses(self, experts: Classifier, rows: Sequence[LabelledTokens]) -> Weighed:
        return classification.labels(experts, rows, self.foundation.pad)

    # --- evaluation

    def score(self, name: str, plan: Plan | None, folder: Path | None) -> Judged:
        """Score the base, an expert, a control that was trained, or fixed weights on all test rows, in one label space.

        `base` knows the data set and answers its most frequent label in training; controls that were trained have one
        head over all labels; `average` has the mean of all adapters merged into its weights and, not knowing the data
        set, answers by the mean of all heads, as `uniform` does.
        """
        classifier, names = self.mixture.model.classifier, self.mixture.model.names
        n, e = self.sheet.size, len(names)
        which, _, expert = name.partition(":")
        if which == "base":
            domains = self.materials.domains.items()
            return self.sheet.majority({domain: (own.labels, own.train) for domain, own in domains})
        if folder:
            found = load_expert(folder, self.foundation.fingerprint)
            assert found.head is not None
            return self.graded(self.assembled(found.adapter, found.head), torch.ones(n, 1))
        if which == "average":
            classifier = self.averaged()
        fixed = controls.fixed(names.index(expert), n, e) if which == "expert" else controls.uniform(n, e)
        return self.graded(classifier, fixed)

    def averaged(self) -> Classifier:
        """The base with the mean of all adapters merged into its weights, and every head."""
        found = {name: self.mixture.experts[name] for name in self.mixture.model.names}
        heads = {name: one.head for name, one in found.items() if one.head}
        return Classifier(
            self.kind.average(cast(Any, self.fresh(self.compute.whole).body), [*found.values()]), heads, self.pool
        )

    def score_weights(self, weights: Weights | None) -> Judged:
        assert weights is not None, "labels are never decided token by token"
        return self.graded(self.mixture.model.classifier, weights)

    def graded(self, classifier: Classifier, weights: Weights) -> Judged:
        """Grade a classifier's answers under given decisions."""
        return self.sheet.grade(classifier, weights, self.recipe.evaluate.batch, self.foundation.pad)

    def shown(self, scores: Judged) -> str:
        return scores.unit.shown(scores.mean())

    def unanswered(self) -> Judged:
        return self.sheet.unanswered()

    def findings(
        self, scores: dict[str, Judged], weights: Weights, trained: Mapping[str, tuple[Plan, Path]]
    ) -> Findings:
        """The answers of the mixture, its costs, and its accuracy on all rows together."""
        stored = self.mixture
        counts = grading.counted(self.body, stored, weights)
        alike = grading.pooled(cast(dict[str, Grades], scores), self.recipe.seed)
        pooled = {name: {"accuracy": one} for name, one in alike.items()}
        facts = {"parameters": counts, "samples": self.samples(stored)}
        controls = {name: load_expert(at) for name, (_, at) in trained.items()}
        return Findings(grading.costs(self.body, stored, counts, controls), pooled, facts, {})

    @torch.inference_mode()
    def samples(self, stored: StoredClassifier) -> list[dict[str, Any]]:
        """A few rows of each data set, with the mixture's routing and its answers."""
        shown, model = list[dict[str, Any]](), stored.model
        labels = model.classifier.labels
        for name, some in self.test_rows.items():
            for row in some[: self.recipe.evaluate.samples]:
                answers = model.classify(self.prompts([row]))
                (weights,), (best,) = answers.routing.weights.tolist(), answers.routing.best.tolist()
                shown.append(
                    {
                        "domain": name,
                        "prompt": row.text,
                        "text": labels[int(answers.log_probabilities[0].argmax())],
                        "finish": "stop",
                        "chosen": model.names[best] if best >= 0 else "base",
                        "weights": dict(zip(model.names, weights, strict=True)),
                        "reference": labels[row.label],
                        "tokens": [],
                    }
                )
        return shown
