"""How well a classifier does on held-out rows, and what a training is chosen by."""

import pytest
import torch

from moesaic.data.answers import LabelledTokens
from moesaic.model.classifier import Classifier, Head, Shape
from moesaic.routing import Gates
from moesaic.testing import tiny_encoder
from moesaic.train.classification import Measured, labels, loss_of, measure
from moesaic.train.mixture_loss import Table

ROWS = [LabelledTokens([2, 5 + n, 6 + n % 7, 3], [0] * 4, n % 2, f"t{n}", f"g{n}") for n in range(7)]


def alone(rows: int) -> Gates:
    return Gates.one(0, rows, 1, torch.zeros(1))


def model(*heads: tuple[str, ...]) -> Classifier:
    draw = torch.Generator().manual_seed(0)
    made = {f"t{n}": Head.fresh(Shape(own), 32, draw) for n, own in enumerate(heads)}
    return Classifier(tiny_encoder(dtype=torch.float32), made, "first").requires_grad_(False)


def test_metrics_and_nats_are_of_all_rows_whatever_the_batches():
    classifier = model(("a", "b"))
    found = measure(classifier, alone, {"t": ROWS}, 3, 0, {"t": ("f1", "accuracy")}, {"t": 2}, {})
    assert list(found.metrics["t"]) == ["f1", "accuracy"] and found.score == found.metrics["t"]["f1"]
    summed, count = loss_of(classifier, alone, 0)(ROWS)
    assert found.nats == pytest.approx(summed.item() / count) and count == 7
    other = measure(classifier, alone, {"t": ROWS}, 7, 0, {"t": ("f1", "accuracy")}, {"t": 2}, {})
    assert other.metrics == found.metrics and other.nats == pytest.approx(found.nats)


def test_f1_is_that_of_the_chosen_label():
    classifier = model(("a", "b"))
    with torch.no_grad():
        classifier.heads[0].out.bias.copy_(torch.tensor([99.0, 0.0]))  # every answer is the first label
    first = sum(row.label == 0 for row in ROWS)
    for chosen, wanted in (({"t": 0}, 2 * first / (first + len(ROWS))), ({"t": 1}, 0.0), ({}, 0.0)):
        found = measure(classifier, alone, {"t": ROWS}, 4, 0, {"t": ("f1",)}, {"t": 2}, chosen)
        assert found.score == pytest.approx(wanted)
    assert 0 < first < len(ROWS)


def test_a_label_of_another_task_is_a_wrong_answer():
    classifier = model(("a", "b", "c", "d"))
    with torch.no_grad():
        classifier.heads[0].out.bias.copy_(torch.tensor([0.0, 0.0, 99.0, 0.0]))
    tasks = {"one": ROWS, "two": [LabelledTokens(row.ids, row.types, 2, row.text, row.group) for row in ROWS]}
    metrics = {"one": ("accuracy",), "two": ("accuracy",)}
    found = measure(classifier, alone, tasks, 4, 0, metrics, {"one": 2, "two": 2}, {})
    assert found.metrics == {"one": {"accuracy": 0.0}, "two": {"accuracy": 1.0}} and found.score == 0.5
    assert found.facts["validation_one"] == 0.0 and found.facts["validation_score"] == 0.5


def test_the_metric_decides_and_of_equals_the_nats():
    def made(accuracy: float, nats: float) -> float:
        return Measured({"t": {"accuracy": accuracy}}, nats).loss

    assert made(0.9, 50.0) < made(0.899, 0.1) and made(0.9, 0.1) < made(0.9, 0.2)


def test_the_loss_of_a_task_is_a_table_of_what_each_expert_loses():
    classifier = model(("a", "b"), ("c", "d"))
    table = Table.of(labels(classifier, ROWS, 0), len(ROWS), 2, True, lambda _: None)
    for expert in range(2):
        gates = Gates.one(expert, len(ROWS), 2, torch.zeros(1))
        summed, _ = loss_of(classifier, lambda n, gates=gates: gates, 0)(ROWS)
        assert table.sums[:, expert].sum().item() == pytest.approx(summed.item(), rel=1e-5)
    assert table.slopes is not None and table.slopes.shape == (7, 2, 2) and table.slopes.isfinite().all()
