"""Property: the router's report against scikit-learn, naive loops and tables done by hand."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, f1_score

from moesaic.errors import DataError
from moesaic.evaluate.routers import accuracy_by_length, calibration_error, reliability, router_report

NAMES = ["math", "code", "chat"]


def certain(chosen: list[int], confidence: float = 1.0, experts: int = 3) -> np.ndarray:
    probabilities = np.full((len(chosen), experts), (1 - confidence) / (experts - 1))
    for row, expert in enumerate(chosen):
        probabilities[row] = probabilities[row] if expert >= 0 else 0.0
        if expert >= 0:
            probabilities[row, expert] = confidence
    return probabilities


def test_a_table_by_hand():
    labels, chosen = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, -1, 0]
    report = router_report(labels, chosen, certain(chosen), NAMES)
    assert report["accuracy"] == 0.5
    assert report["confusion"] == {
        "rows": NAMES,
        "columns": [*NAMES, "base"],
        "counts": [[2, 1, 0, 0], [0, 1, 0, 1], [1, 0, 0, 0]],
    }
    assert report["macro_f1"] == pytest.approx((2 * 2 / 6 + 2 * 1 / 4 + 0) / 3)
    assert report["utilisation"] == pytest.approx({"math": 1 / 2, "code": 1 / 3, "chat": 0, "base": 1 / 6})
    entropy = -sum(share * math.log(share) for share in (1 / 2, 1 / 3, 1 / 6))
    assert report["utilisation_entropy"] == pytest.approx(entropy)
    assert report["utilisation_evenness"] == pytest.approx(entropy / math.log(4)), "three experts and the base"
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_the_base_is_a_class_only_where_it_is_a_label():
    report = router_report([0, -1], [0, -1], certain([0, -1]), NAMES)
    assert report["macro_f1"] == 1
    assert report["confusion"]["rows"] == [*NAMES, "base"]
    assert report["confusion"]["counts"][-1] == [0, 0, 0, 1]
    silent = router_report([0, 1], [0, 1], certain([0, 1]), NAMES)
    assert silent["confusion"]["columns"] == NAMES
    assert silent["utilisation"] == {"math": 0.5, "code": 0.5, "chat": 0}


def test_even_use_has_the_largest_entropy_and_one_expert_none():
    assert router_report([0] * 3, [0, 1, 2], certain([0, 1, 2]), NAMES)["utilisation_entropy"] == pytest.approx(
        math.log(3)
    )
    assert router_report([0] * 3, [1] * 3, certain([1] * 3), NAMES)["utilisation_entropy"] == 0
    for chosen, evenness in (([0, 1, 2], 1.0), ([1, 1, 1], 0.0)):
        found = router_report([0] * 3, chosen, certain(chosen), NAMES)["utilisation_evenness"]
        assert found == pytest.approx(evenness), "1 where all share evenly, however many they are"


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-1, 2), st.integers(-1, 2)), min_size=1, max_size=40))
def test_against_scikit_learn(rows: list[tuple[int, int]]):
    labels, chosen = [label for label, _ in rows], [choice for _, choice in rows]
    report = router_report(labels, chosen, certain(chosen), NAMES)
    f1 = f1_score(labels, chosen, labels=sorted(set(labels)), average="macro", zero_division=0)
    assert report["macro_f1"] == pytest.approx(f1)
    table = confusion_matrix(labels, chosen, labels=[0, 1, 2, -1])
    confusion = report["confusion"]
    assert confusion["counts"] == table[: len(confusion["rows"]), : len(confusion["columns"])].tolist()
    assert sum(map(sum, confusion["counts"])) == len(rows)
    assert sum(report["utilisation"].values()) == pytest.approx(1)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-1, 1), st.integers(-1, 1), st.floats(0, 1)), min_size=1, max_size=40))
def test_calibration_against_a_naive_loop(rows: list[tuple[int, int, float]]):
    labels, chosen = [row[0] for row in rows], [row[1] for row in rows]
    probabilities = np.array([[p, 1 - p] for _, _, p in rows])
    claims = [
        (probabilities[number, choice], label == choice)
        for number, (label, choice, _) in enumerate(rows)
        if choice >= 0
    ]
    expected = 0.0
    for lowest in range(10):
        inside = [(p, right) for p, right in claims if lowest == min(int(p * 10), 9)]
        if inside:
            confidence, accuracy = np.mean([p for p, _ in inside]), np.mean([right for _, right in inside])
            expected += len(inside) / len(claims) * abs(accuracy - confidence)
    measured = calibration_error(reliability(labels, chosen, probabilities))
    assert measured == (pytest.approx(expected, abs=1e-12) if claims else None)


def test_calibration_by_hand():
    chosen = [0] * 10
    labels = [0] * 8 + [1] * 2
    assert calibration_error(reliability(labels, chosen, certain(chosen, 0.8, experts=2))) == pytest.approx(0)
    assert calibration_error(reliability(labels, chosen, certain(chosen, 1.0, experts=2))) == pytest.approx(0.2)
    assert calibration_error(reliability([0], [-1], certain([-1]))) is None


def test_bins_of_confidence_by_hand():
    labels, chosen = [0, 1, 0, 0, 0], [0, 0, 0, -1, 1]
    probabilities = np.array([[0.95, 0.05], [1.0, 0.0], [0.62, 0.38], [0.0, 0.0], [0.9, 0.1]])
    bins = reliability(labels, chosen, probabilities)
    assert [(entry["from"], entry["below"]) for entry in bins] == [(n / 10, (n + 1) / 10) for n in range(10)]
    filled = {round(entry["from"], 1): entry for entry in bins if entry["rows"]}
    assert [entry["rows"] for entry in filled.values()] == [1, 1, 2]
    assert (filled[0.9]["confidence"], filled[0.9]["accuracy"]) == (pytest.approx(0.975), 0.5)
    assert (filled[0.1]["confidence"], filled[0.1]["accuracy"]) == (0.1, 0)
    assert {(entry["confidence"], entry["accuracy"]) for entry in bins if not entry["rows"]} == {(None, None)}
    report = router_report(labels, chosen, probabilities, ["one", "two"])
    assert report["reliability"] == bins
    assert report["calibration_error"] == pytest.approx((0.1 + 0.38 + 2 * 0.475) / 4)


def test_accuracy_by_length():
    report = accuracy_by_length([0, 0, 1, 1, 0], [0, 1, 1, 1, 1], [7, 8, 15, 500, 128], edges=(8, 16, 128))
    assert report == [
        {"from": 0, "below": 8, "rows": 1, "accuracy": 1.0},
        {"from": 8, "below": 16, "rows": 2, "accuracy": 0.5},
        {"from": 16, "below": 128, "rows": 0, "accuracy": None},
        {"from": 128, "below": None, "rows": 2, "accuracy": 0.5},
    ]
    inside = router_report([0], [0], certain([0]), NAMES, lengths=[9])["by_length"]
    assert [entry["rows"] for entry in inside] == [0, 1, 0, 0, 0, 0]
    assert "by_length" not in router_report([0], [0], certain([0]), NAMES)


def test_unusable_rows_are_refused():
    for labels, chosen, shape in (([], [], (0, 3)), ([0], [0, 1], (1, 3)), ([0], [0], (1, 2))):
        with pytest.raises(DataError, match="every row needs"):
            router_report(labels, chosen, np.zeros(shape), NAMES)
    with pytest.raises(DataError, match=r"a label is no expert's number; expected -1 \(base\) to 2"):
        router_report([3], [0], certain([0]), NAMES)
    with pytest.raises(DataError, match="a choice is no expert's number"):
        router_report([0], [-2], certain([0]), NAMES)
    with pytest.raises(DataError, match="not probabilities"):
        router_report([0], [0], np.array([[2.0, -1.0, 0.0]]), NAMES)
    with pytest.raises(DataError, match="not probabilities"):
        router_report([0], [0], np.array([[math.nan, 0.0, 0.0]]), NAMES)
    with pytest.raises(DataError, match="label, choice and length"):
        accuracy_by_length([0], [0], [])
