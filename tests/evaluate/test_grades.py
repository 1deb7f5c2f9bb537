"""Grades of answers: metrics by task, their mean, intervals of the mean and of all rows alike; a verdict in scores."""

import numpy as np
import pytest
from sklearn.metrics import f1_score, matthews_corrcoef

from moesaic.errors import CompatibilityError, DataError
from moesaic.evaluate.grades import Grades
from moesaic.evaluate.statistics import Means
from moesaic.evaluate.verdict import judge
from moesaic.ops.metrics import metric

LABELS, METRICS = {"a": 2, "b": 3}, {"a": ("matthews", "accuracy"), "b": ("accuracy",)}
DRAW = np.random.default_rng(0)
TRUTH = {"a": DRAW.integers(0, 2, 40), "b": DRAW.integers(0, 3, 60)}
GROUPS = [f"g{n}" for n in range(100)]


def graded(share: float, seed: int, groups=GROUPS, only: str | None = None) -> Grades:
    """Answers of which this share is right, the rest -1; `only`: on one task, elsewhere none."""
    draw = np.random.default_rng(seed)
    said = {t: np.where(draw.random(len(y)) < (share if only in (None, t) else 0), y, -1) for t, y in TRUTH.items()}
    return Grades.of(draw.random(100), TRUTH, said, LABELS, METRICS, groups)


def test_the_score_is_the_mean_of_the_first_metrics_and_errors_count_all_rows_alike():
    grades = graded(0.7, 1)
    told = grades.figures()
    said = {t: np.where(rows[:, -LABELS[t] :].sum(1) > 0, TRUTH[t], -1) for t, rows in grades.tallies.items()}
    expected = matthews_corrcoef(TRUTH["a"], said["a"])
    assert told["score"]["a"] == pytest.approx(expected) == pytest.approx(told["metrics"]["a"]["matthews"])
    assert told["score"]["all"] == pytest.approx((expected + (said["b"] == TRUTH["b"]).mean()) / 2)
    right = sum((said[t] == TRUTH[t]).sum() for t in said)
    assert 1 - grades.errors().mean() == pytest.approx(right / 100)


def test_the_score_and_that_of_picked_answers_are_the_f1_of_the_chosen_label():
    draw, truth = np.random.default_rng(5), {"a": TRUTH["b"]}
    said = {"a": draw.integers(0, 3, 60)}
    for positive in range(3):
        metrics, chosen = {"a": ("f1",)}, {"a": positive}
        grades = Grades.of(draw.random(60), truth, said, {"a": 3}, metrics, GROUPS[:60], chosen)
        wanted = f1_score(truth["a"], said["a"], labels=[positive], average="macro")
        assert grades.figures()["metrics"]["a"]["f1"] == pytest.approx(wanted)
        again = grades.picked([grades], np.zeros(60, int))
        assert 1 - grades.mean() == 1 - again.mean() == pytest.approx(wanted)


def test_intervals_are_of_the_metric_of_resampled_groups():
    grades = graded(0.7, 1)
    means = Means.of({"it": grades, "other": graded(0.6, 2)}, resamples=300, seed=4)
    draw, losses = np.random.default_rng(4), []
    picks = {t: [draw.integers(len(y), size=len(y)) for _ in range(300)] for t, y in TRUTH.items()}
    order = {"a": np.argsort(GROUPS[:40]), "b": np.argsort(GROUPS[40:])}
    for one in range(300):
        sums = {t: grades.tallies[t][order[t]][picks[t][one]].sum(0) for t in TRUTH}
        losses.append(1 - np.mean([metric(METRICS[t][0], sums[t]) for t in TRUTH]))
    assert means.draws["it"].tolist() == pytest.approx(losses)
    assert means.value["it"] == grades.mean()


def test_rows_are_picked_and_blended_row_by_row():
    one, two = graded(1.0, 1), graded(0.0, 2)
    which = np.arange(100) % 2
    found = one.picked([one, two], which)
    assert found.right().tolist() == (1 - which).tolist() and found.nats[1] == two.nats[1]
    assert one.blended([one, two]).errors().mean() == pytest.approx(0.5)
    assert (one.merit < two.merit).all(), "a right answer is better than a wrong one, whatever the nats"


def test_only_the_same_rows_are_compared():
    with pytest.raises(CompatibilityError, match="not scored on the same rows"):
        Means.of({"one": graded(0.5, 1), "two": graded(0.5, 1, GROUPS[::-1])})
    with pytest.raises(DataError, match="differ in length"):
        graded(0.5, 1, GROUPS[:3])


def test_the_verdict_is_of_scores_and_the_best_is_the_highest():
    scores = {"base": graded(0.9, 0), "expert:a": graded(0.8, 1, only="a"), "expert:b": graded(0.8, 2, only="b")}
    scores |= {"joint": graded(0.5, 3), "router": graded(0.8, 4)}
    found = judge(scores, resamples=200)
    assert found["verdict"]["use"] == "router" and "a mean score of" in found["verdict"]["sentence"]
    assert found["measure"] == "score" and "base" not in found["verdict"]["tied"]
    controls = found["controls"]
    assert controls["expert:a"]["score"]["b"] == 0.0 and controls["expert:b"]["score"]["a"] == 0.0
    assert controls["oracle"]["score"]["a"] == controls["expert:a"]["score"]["a"]
    assert controls["joint"]["versus_router"]["difference"] > 0, "above 0 the router is ahead"
    low, high = controls["router"]["interval"]
    assert low <= controls["router"]["score"]["all"] <= high
    assert found["best_part"]["name"] == "base" and found["best_part"]["score"] == controls["base"]["score"]["all"]
    assert controls["random"]["score"]["b"] == pytest.approx(controls["expert:b"]["score"]["b"] / 2)
