"""Tests of paired differences: intervals that cover, verdicts that may be undecided, and bits per byte."""

import math

import numpy as np
import pytest

from moesaic.errors import DataError
from moesaic.lab.paired import Comparison, bits_per_byte, compare, t_quantile

SIZE = np.full(60, 200.0)


def arm(seed: int, better: float = 0.0, noise: float = 0.01, depths: int = 1, seeds: int = 3) -> np.ndarray:
    """Nats of 60 documents of 200 bytes: their own difficulty, shared by all arms, and noise of every training."""
    draw = np.random.default_rng(seed)
    difficulty = np.random.default_rng(0).normal(1.4, 0.3, 60)
    training = draw.normal(-better, noise, (depths, seeds, 1)) + draw.normal(0, noise, (depths, seeds, 60))
    return (difficulty + training) * SIZE


@pytest.mark.parametrize(
    ("share", "freedom", "value"),
    [(0.975, 1, 12.7062), (0.975, 2, 4.30265), (0.975, 8, 2.30600), (0.8, 2, 1.06066), (0.975, 1000, 1.96234)],
)
def test_quantiles_of_t_are_those_of_the_tables(share: float, freedom: int, value: float) -> None:
    assert t_quantile(np.array([share, 1 - share]), freedom) == pytest.approx([value, -value], rel=1e-5)


def test_without_noise_of_documents_the_interval_is_the_textbook_one() -> None:
    differences = np.array([0.03, 0.05, 0.07])
    b = np.ones((1, 3, 5)) * 100
    a = b + differences[None, :, None] * math.log(2) * 80
    found = compare(a, b, np.full(5, 80.0))
    half = 4.30265 * 0.02 / math.sqrt(3)
    assert found.mean == pytest.approx(0.05)
    assert (found.low, found.high) == pytest.approx((0.05 - half, 0.05 + half), abs=0.01 * half)
    assert found.smallest == pytest.approx((4.30265 + 1.06066) * 0.02 / math.sqrt(3), rel=1e-4)


def test_with_many_seeds_the_smallest_difference_is_the_usual_formula() -> None:
    draw = np.random.default_rng(1)
    b = np.zeros((1, 400, 2))
    a = b + draw.normal(0, 0.01, (1, 400, 1)) * math.log(2) * 100
    spread = (a[0, :, 0] / (math.log(2) * 100)).std(ddof=1)
    assert compare(a, b, np.full(2, 100.0)).smallest == pytest.approx(2.8 * spread / math.sqrt(400), rel=0.01)


def test_two_trainings_of_the_same_arm_are_undecided() -> None:
    outcomes = [compare(arm(seed), arm(100 + seed), SIZE).outcome for seed in range(40)]
    assert outcomes.count("undecided") >= 36


def test_an_arm_that_is_planted_to_be_worse_loses() -> None:
    found = compare(arm(1, better=-0.2), arm(2), SIZE)
    assert found.outcome == "worse" and found.low > 0 and abs(found.mean) > found.smallest
    assert compare(arm(2), arm(1, better=-0.2), SIZE).outcome == "better"


def test_a_small_difference_is_undecided_and_the_smallest_that_shows_is_larger() -> None:
    found = compare(arm(1, better=0.004), arm(2), SIZE)
    assert found.outcome == "undecided" and found.smallest > 0.004 / math.log(2)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    truth = -0.01 / math.log(2)
    found = [compare(arm(seed, better=0.01), arm(500 + seed), SIZE) for seed in range(60)]
    assert sum(one.low <= truth <= one.high for one in found) >= 54


def test_more_depths_narrow_the_interval_as_their_spread_is_pooled() -> None:
    one, four = (compare(arm(3, depths=n), arm(4, depths=n), SIZE) for n in (1, 4))
    assert four.high - four.low < 0.6 * (one.high - one.low)


def test_documents_that_disagree_widen_the_interval_however_many_seeds_there_are() -> None:
    draw = np.random.default_rng(5)
    apart = draw.normal(0, 0.1, 60) * SIZE
    seeds = arm(1, noise=1e-4, seeds=30)
    found = compare(seeds + apart, seeds, SIZE)
    expected = 1.96 * 0.1 / math.sqrt(60) / math.log(2)
    assert found.high - found.low == pytest.approx(2 * expected, rel=0.25)
    assert found.smallest > expected


def test_one_seed_has_no_spread() -> None:
    with pytest.raises(DataError, match="at least two"):
        compare(arm(1, seeds=1), arm(2, seeds=1), SIZE)


def test_outcomes_follow_from_the_interval_alone() -> None:
    assert [Comparison(m, m - 1, m + 1, 1, 3, 9).outcome for m in (-2, 0.5, 2)] == ["better", "undecided", "worse"]


def test_bits_per_byte_do_not_change_when_tokens_are_merged() -> None:
    nats, size = np.array([1.5, 0.25, 2.0, 3.0]), np.array([1, 2, 1, 4])
    merged = np.array([1.75, 5.0]), np.array([3, 5])
    assert bits_per_byte(nats, size) == pytest.approx(bits_per_byte(*merged)) == pytest.approx(6.75 / 8 / math.log(2))
