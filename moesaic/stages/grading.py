"""What contenders answer to test rows with labels, all in the label space of all tasks; and what they would cost.

Knows nothing about how contenders are compared, nor how they were trained.

Who stands for what: `base` says the label that is most frequent among the task's training rows, and is told the task;
`joint` and `joint_wide` have one head over all labels; `average` has the mean of all adapters merged into its weights
and, not knowing the task, answers by the mean of all heads, as `uniform` does.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from moesaic.adapters import merge
from moesaic.artefacts.adapter import load_expert
from moesaic.compose.classifier import StoredClassifier, load_classifier
from moesaic.data.answers import LabelledTokens, targets_of
from moesaic.evaluate.grades import Grades
from moesaic.evaluate.statistics import Means
from moesaic.evaluate.verdict import Cost, with_derived
from moesaic.kinds.labels import assembled, metrics_of
from moesaic.model.classifier import Classifier
from moesaic.routing import Gates, controls
from moesaic.routing.routers import TrainedRouter
from moesaic.runs.workshop import Address, Workshop, at_address, kept
from moesaic.stages.experts import CONTROLS
from moesaic.train.classification import batched, own_of

ABSTAINED = -1


@kept
def mixture_of(address: Address, version: str) -> StoredClassifier:
    """The mixture, kept between pieces of work while it is the same version."""
    return load_classifier(at_address(*address).mixture_at)


def here(address: Address) -> tuple[Workshop, StoredClassifier]:
    workshop = at_address(*address)
    return workshop, mixture_of(address, str(workshop.mixture_at.resolve()))


def grade_contender(address: Address, name: str) -> Grades:
    """The answers of one contender that needs no router."""
    workshop, stored = here(address)
    classifier, names = stored.model.classifier, stored.model.names
    n, e = sum(map(len, workshop.labelled_test_rows().values())), len(names)
    kind, _, expert = name.partition(":")
    if kind == "base":
        return majority(workshop)
    if kind in CONTROLS:
        found = load_expert(workshop.part_at(kind), workshop.base_fingerprint)
        assert found.head is not None
        return grade(workshop, assembled(workshop, found.adapter, found.head), torch.ones(n, 1))
    if kind == "average":
        body = workshop.fresh_body()
        merge(body, [stored.experts[one].lora for one in names], [1 / e] * e)
        heads = {one: head for one in names if (head := stored.experts[one].head)}
        classifier = Classifier(body, heads, workshop.pool)
    fixed = controls.fixed(names.index(expert), n, e) if kind == "expert" else controls.uniform(n, e)
    return grade(workshop, classifier, fixed)


def grade_weights(address: Address, weights: Float[Tensor, "n e"]) -> Grades:
    """The answers of the mixture under given decisions."""
    workshop, stored = here(address)
    return grade(workshop, stored.model.classifier, weights)


@torch.inference_mode()
def grade(workshop: Workshop, classifier: Classifier, weights: Float[Tensor, "n e"]) -> Grades:
    """The answers of a classifier to all test rows: each the most probable of all labels, of whatever task.

    A row on which nobody is chosen has no answer. Rows of like length share a batch, which changes only the time.
    """
    rows, batch = workshop.labelled_test_rows(), workshop.recipe.evaluate.batch
    every = [row for some in rows.values() for row in some]
    nats, said = np.zeros(len(every)), np.zeros(len(every), dtype=np.int64)
    order = sorted(range(len(every)), key=lambda i: len(every[i].ids))
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        some = [every[i] for i in chosen]
        logs = classifier(batched(some, workshop.backbone.pad), Gates.of(weights[chosen].float())).double()
        nats[chosen] = -logs.gather(1, targets_of(some)[:, None])[:, 0].numpy()
        said[chosen] = torch.where(weights[chosen].sum(-1) > 0, logs.argmax(-1), ABSTAINED).numpy()
    return graded(workshop, rows, nats, said)


def graded(workshop: Workshop, rows: Mapping[str, list[LabelledTokens]], nats: np.ndarray, said: np.ndarray) -> Grades:
    """Grades of answers among all labels, in the order of the rows."""
    counts, metrics = workshop.counts, {task: metrics_of(workshop, task) for task in rows}
    truth, own, first, start = dict[str, np.ndarray](), dict[str, np.ndarray](), 0, 0
    for task, some in rows.items():
        truth[task] = np.array([row.label for row in some]) - start
        own[task] = own_of(said[first : first + len(some)], start, counts[task])
        first, start = first + len(some), start + counts[task]
    groups = [row.group for some in rows.values() for row in some]
    return Grades.of(nats, truth, own, counts, metrics, groups)


def majority(workshop: Workshop) -> Grades:
    """For every row the most frequent label of its task in training; nats by frequencies, each label seen once more."""
    rows, start = workshop.labelled_test_rows(), 0
    nats, said = list[float](), list[int]()
    for task, some in rows.items():
        domain = workshop.domains[task]
        seen = Counter(example.response for example in domain.train)
        counts = np.array([seen[label] for label in domain.labels])
        logs = np.log((counts + 1) / (counts.sum() + len(counts)))
        nats += [-float(logs[row.label - start]) for row in some]
        said += [start + int(counts.argmax())] * len(some)
        start += len(counts)
    return graded(workshop, rows, np.array(nats), np.array(said))


def nobody(workshop: Workshop) -> Grades:
    """What rows get on which a router abstains: no answer, and all labels alike."""
    rows, g = workshop.labelled_test_rows(), sum(workshop.counts.values())
    n = sum(map(len, rows.values()))
    return graded(workshop, rows, np.full(n, np.log(g)), np.full(n, ABSTAINED))


# what is told beside the verdict


def counted(workshop: Workshop, stored: StoredClassifier, weights: Float[Tensor, "n e"]) -> dict[str, int]:
    """Parameters: in all, of the base, of adapters, heads and router; and those that answer one row, on average."""
    router = stored.model.router
    adapters, heads = ([*sizes] for sizes in zip(*sizes_of(stored).values(), strict=True))
    base = sum(weight.numel() for weight in workshop.body.parameters())
    routed = sum(w.numel() for w in router.parameters()) if isinstance(router, TrainedRouter) else 0
    shares = (weights > 0).double().mean(0).tolist()
    chosen = sum((a + h) * share for a, h, share in zip(adapters, heads, shares, strict=True))
    trained = sum(adapters) + sum(heads) + routed
    return {
        "total": base + trained,
        "base": base,
        "experts": sum(adapters),
        "heads": sum(heads),
        "router": routed,
        "trained": trained,
        "active": base + routed + round(chosen),
    }


def sizes_of(stored: StoredClassifier) -> dict[str, tuple[int, int]]:
    """Parameters of every expert's adapter, and of its head."""
    found = {name: stored.experts[name] for name in stored.model.names}
    return {
        name: (one.adapter.num_parameters, one.head.num_parameters if one.head else 0) for name, one in found.items()
    }


def costs(workshop: Workshop, stored: StoredClassifier, counts: dict[str, int], scored: set[str]) -> dict[str, Cost]:
    """Parameters and bytes that answer one row, of whatever could be used instead of the mixture."""
    base = counts["base"]
    parameters = {"average": base + counts["heads"], "router": counts["active"]}
    parameters |= {f"expert:{name}": base + sum(sizes) for name, sizes in sizes_of(stored).items()}
    for name in CONTROLS:
        if name in scored:
            control = load_expert(workshop.part_at(name))
            parameters[name] = base + control.adapter.num_parameters
            parameters[name] += control.head.num_parameters if control.head else 0
    width = next(workshop.body.parameters()).element_size()
    return {name: Cost(parameters=count, bytes=count * width) for name, count in parameters.items()}


def pooled(scores: Mapping[str, Grades], seed: int) -> dict[str, dict[str, Any]]:
    """Of every contender the share of all rows it answers right, with its interval, and how far the router is ahead."""
    errors = {name: one.errors() for name, one in with_derived(scores).items() if isinstance(one, Grades)}
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


@torch.inference_mode()
def samples(workshop: Workshop, stored: StoredClassifier) -> list[dict[str, Any]]:
    """A few rows of each task, how the mixture routed them and what it answered."""
    shown, model = list[dict[str, Any]](), stored.model
    for task, some in workshop.labelled_test_rows().items():
        for row in some[: workshop.recipe.evaluate.samples]:
            answers = model.classify(batched([row], workshop.backbone.pad))
            (weights,), (best,) = answers.routing.weights.tolist(), answers.routing.best.tolist()
            labels = model.classifier.labels
            shown.append(
                {
                    "domain": task,
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
