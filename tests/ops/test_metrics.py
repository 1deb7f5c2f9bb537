"""Metrics from sums are those of scikit-learn, for any answers; of many resamples at once, too."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from moesaic.ops.metrics import auroc, metric, of_a_share, tallies


@st.composite
def answers(draw):
    labels = draw(st.integers(2, 5))
    n = draw(st.integers(1, 30))
    truth = draw(st.lists(st.integers(0, labels - 1), min_size=n, max_size=n))
    said = draw(st.lists(st.integers(-1, labels - 1), min_size=n, max_size=n))
    return labels, np.array(truth), np.array(said)


def expected(name, labels, truth, said):
    if name == "accuracy":
        return accuracy_score(truth, said)
    if name == "f1" and labels == 2:
        return f1_score(truth, said, labels=[1], average="macro", zero_division=0)
    if name == "f1":
        return f1_score(truth, said, labels=range(labels), average="macro", zero_division=0)
    return matthews_corrcoef(truth, said)


@pytest.mark.parametrize("name", ["accuracy", "f1", "matthews"])
@settings(max_examples=60, deadline=None)
@given(found=answers())
@pytest.mark.filterwarnings("ignore")
def test_it_is_that_of_scikit_learn(name, found):
    labels, truth, said = found
    sums = tallies(truth, said, labels).sum(0)
    assert metric(name, sums) == pytest.approx(expected(name, labels, truth, said))


@settings(max_examples=60, deadline=None)
@given(found=answers(), chosen=st.integers(0, 4))
@pytest.mark.filterwarnings("ignore")
def test_f1_of_a_chosen_label_is_that_of_scikit_learn(found, chosen):
    labels, truth, said = found
    positive, sums = chosen % labels, tallies(truth, said, labels).sum(0)
    wanted = f1_score(truth, said, labels=[positive], average="macro", zero_division=0)
    assert metric("f1", sums, positive) == pytest.approx(wanted)
    for other in ("accuracy", "matthews"):
        assert metric(other, sums, positive) == metric(other, sums), "only f1 is of a label"


def test_sums_of_many_resamples_are_each_taken_by_itself():
    draw = np.random.default_rng(0)
    truth, said = draw.integers(0, 3, 50), draw.integers(-1, 3, 50)
    rows = tallies(truth, said, 3)
    picks = [draw.integers(0, 50, 50) for _ in range(4)]
    sums = np.stack([rows[some].sum(0) for some in picks])
    for name in ("accuracy", "f1", "matthews"):
        apart = [float(metric(name, tallies(truth[some], said[some], 3).sum(0))) for some in picks]
        assert metric(name, sums).tolist() == pytest.approx(apart)


def test_auroc_counts_pairs_in_order_and_half_of_the_ties():
    inside, outside = np.array([3.0, 2.0, 2.0]), np.array([1.0, 2.0])
    pairs = [(a > b) + 0.5 * (a == b) for a in inside for b in outside]
    assert auroc(inside, outside) == sum(pairs) / len(pairs)


def test_the_interval_of_a_share_is_that_of_the_tables():
    assert of_a_share(8, 10) == pytest.approx((0.4902, 0.9433), abs=5e-5)
    assert of_a_share(0, 10) == pytest.approx((0.0, 0.2775), abs=5e-5)
    assert of_a_share(10, 10) == pytest.approx((0.7225, 1.0), abs=5e-5)
