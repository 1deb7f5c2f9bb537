"""Means and intervals against naive loops, a known truth and identities."""

import math
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic.errors import CompatibilityError, DataError
from moesaic.evaluate.statistics import Difference, Means, Scores, bounds, mean_nats, paired, perplexity


def scored(nats: list[float], tokens: list[int], domains: str | list[str], groups: str | list[str]) -> Scores:
    return Scores(np.array(nats, dtype=np.float64), np.array(tokens), list(domains), list(groups))


def simulated(generator: np.random.Generator, groups: int = 60, effect: float = 0.0) -> Scores:
    """Two domains of conversations, whose one to three rows share their difficulty: mean nats is exactly 3 + effect."""
    sizes = generator.integers(1, 4, 2 * groups)
    group = np.repeat(np.arange(2 * groups), sizes)
    tokens = generator.integers(5, 50, len(group))
    rate = 3 + effect + generator.normal(0, 0.5, 2 * groups)[group] + generator.normal(0, 0.2, len(group))
    domains = ["a" if index < groups else "b" for index in group]
    return Scores(rate * tokens, tokens, domains, [str(index) for index in group])


TINY = scored([2, 6, 9, 100], [1, 3, 3, 4], ["a", "a", "b", "unseen"], "xyzw")


def test_means_by_hand():
    assert mean_nats(TINY, "a") == 2
    assert mean_nats(TINY, "b") == 3
    assert mean_nats(TINY) == pytest.approx(17 / 7)  # the unseen row is not in it
    assert mean_nats(TINY, "unseen") == 25
    assert perplexity(math.log(8)) == pytest.approx(8)
    assert perplexity(1e4) is None


def test_float32_rows_are_summed_in_double():
    n = 200_000
    scores = Scores(np.full(n, 0.1, dtype=np.float32), np.ones(n, dtype=np.int32), ["a"] * n, ["g"] * n)
    assert mean_nats(scores) == pytest.approx(float(np.float32(0.1)), abs=1e-12)


def test_unusable_scores_are_refused():
    with pytest.raises(DataError, match="differ in length"):
        scored([1, 2], [1, 1], "a", "xy")
    with pytest.raises(DataError, match="stands for every domain"):
        scored([1], [1], ["all"], "x")
    with pytest.raises(DataError, match="not finite: row 1"):
        scored([1, math.nan], [1, 1], "aa", "xy")
    with pytest.raises(DataError, match="no scored token: row 1"):
        scored([1, 2], [1, 0], "aa", "xy")
    with pytest.raises(DataError, match=r"no row of this domain.*did you mean 'unseen'"):
        mean_nats(TINY, "unsen")
    with pytest.raises(DataError, match="no row of this domain"):
        mean_nats(scored([1], [1], ["unseen"], "x"))


def test_contenders_must_share_their_rows():
    for other in (
        replace(TINY, tokens=TINY.tokens + 1),
        replace(TINY, domains=["b", "a", "b", "unseen"]),
        replace(TINY, groups=list("xyzz")),
    ):
        with pytest.raises(CompatibilityError, match="same rows"):
            paired(TINY, other)


def test_resamples_match_a_naive_loop():
    """The same draws, taken with plain loops over conversations and rows."""
    scores = simulated(np.random.default_rng(3), groups=7)
    draws = Means.of({"it": scores}, seed=11, resamples=20).draws["it"]

    generator, totals = np.random.default_rng(11), np.zeros((20, 2))
    for domain in ("a", "b"):
        names = sorted({g for g, d in zip(scores.groups, scores.domains, strict=True) if d == domain})
        for number, drawn in enumerate(generator.integers(len(names), size=(20, len(names)))):
            for name in (names[index] for index in drawn):
                for row in range(len(scores.groups)):
                    if scores.groups[row] == name and scores.domains[row] == domain:
                        totals[number] += scores.nats[row], scores.tokens[row]
    np.testing.assert_allclose(draws, totals[:, 0] / totals[:, 1], rtol=1e-12)


def test_a_resample_keeps_the_number_of_groups_of_every_domain():
    """Marks each domain by its tokens: were domains not resampled apart, their shares would vary."""
    scores = scored([1] * 9 + [9] * 5, [1] * 14, "a" * 9 + "b" * 5, "abcdefghijklmn")
    assert interval(scores) == pytest.approx((54 / 14, 54 / 14))


def test_rows_of_one_group_travel_together():
    one = scored([1, 5], [1, 1], "aa", "xx")
    assert interval(one) == (3, 3)
    low, high = interval(replace(one, groups=["x", "y"]))
    assert (low, high) == (1, 5)


def test_the_order_of_the_rows_does_not_matter():
    scores = simulated(np.random.default_rng(5))
    order = np.random.default_rng(6).permutation(len(scores.nats))
    shuffled = Scores(
        scores.nats[order],
        scores.tokens[order],
        [scores.domains[row] for row in order],
        [scores.groups[row] for row in order],
    )
    assert interval(shuffled) == pytest.approx(interval(scores), rel=1e-12)


def test_chunks_cover_every_resample(monkeypatch: pytest.MonkeyPatch):
    scores = simulated(np.random.default_rng(5))
    whole = Means.of({"it": scores}, resamples=50).draws["it"]
    monkeypatch.setattr("moesaic.evaluate.statistics.DRAWS_AT_ONCE", 1)
    single = Means.of({"it": scores}, resamples=50).draws["it"]
    assert len(single) == 50 == len(set(single))
    assert np.isfinite(single).all()
    assert abs(single.mean() - whole.mean()) < 4 * whole.std() / math.sqrt(50)


def test_coverage_of_a_known_truth():
    """In 200 simulated data sets the 95% interval holds the true mean, and the true difference, about that often."""
    hits: Counter[str] = Counter()
    for seed in range(200):
        generator = np.random.default_rng(seed)
        a = simulated(generator)
        b = replace(a, nats=a.nats + (0.1 + generator.normal(0, 0.1, len(a.nats))) * a.tokens)
        low, high = interval(a, seed=seed, resamples=400)
        difference = paired(b, a, seed=seed, resamples=400)
        hits["mean"] += low <= 3 <= high
        hits["difference"] += difference.low <= 0.1 <= difference.high
    assert all(0.90 <= hits[what] / 200 <= 0.98 for what in ("mean", "difference")), hits


def test_ignoring_the_groups_would_be_too_sure():
    scores = simulated(np.random.default_rng(8), groups=200)
    alone = replace(scores, groups=[str(row) for row in range(len(scores.groups))])
    width = np.diff(interval(scores))
    assert width > 1.15 * np.diff(interval(alone))


def interval(scores: Scores, **settings: int) -> tuple[float, float]:
    return Means.of({"it": scores}, **settings).interval("it")


def test_pairing_narrows_the_interval():
    generator = np.random.default_rng(9)
    a = simulated(generator)
    b = replace(a, nats=a.nats + (0.05 + generator.normal(0, 0.05, len(a.nats))) * a.tokens)
    difference = paired(b, a)
    low_a, high_a = interval(a)
    low_b, high_b = interval(b, seed=1)
    unpaired = math.hypot(high_a - low_a, high_b - low_b)
    assert difference.high - difference.low < 0.2 * unpaired
    assert difference.low < difference.mean < difference.high
    assert difference.clear


def test_equal_contenders_do_not_differ():
    scores = simulated(np.random.default_rng(10))
    difference = paired(scores, replace(scores, nats=scores.nats.copy()))
    assert difference == pytest.approx((0, 0, 0), abs=1e-12)
    assert not difference.clear


def test_clear_is_an_interval_without_zero():
    assert Difference(1, 0.5, 2).clear
    assert Difference(-1, -2, -0.5).clear
    assert not Difference(1, -0.5, 2).clear


@settings(deadline=None)
@given(st.lists(st.floats(-10, 10), min_size=1, max_size=50), st.floats(0.1, 0.99))
def test_bounds_are_quantiles(values: list[float], level: float):
    low, high = bounds(np.array(values), level)
    outside = sum(value < low - 1e-9 or value > high + 1e-9 for value in values)
    assert min(values) <= low <= high <= max(values)
    assert outside <= (1 - level) * (len(values) - 1) + 1e-6 + 2


@settings(deadline=None)
@given(st.integers(0, 50), st.floats(0.5, 3), st.floats(-2, 2))
def test_differences_shift_and_turn_around(seed: int, scale: float, shift: float):
    a = simulated(np.random.default_rng(seed), groups=5)
    b = replace(a, nats=scale * a.nats + shift * a.tokens)
    there, back = paired(a, b, resamples=50), paired(b, a, resamples=50)
    assert (there.mean, there.low, there.high) == pytest.approx((-back.mean, -back.high, -back.low), abs=1e-9)
    low, high = interval(a, resamples=50)
    assert interval(b, resamples=50) == pytest.approx((scale * low + shift, scale * high + shift), abs=1e-9)


def test_no_group_and_no_draw_costs_a_call_of_its_own():
    """A thousand groups are drawn two thousand times over, two million draws in all."""
    n, calls = 4000, 0

    def count(frame: object, event: str, arg: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    generator = np.random.default_rng(0)
    scores = Scores(
        generator.normal(3, 1, n),
        np.ones(n, dtype=np.int64),
        ["a", "b"] * (n // 2),
        [str(row // 4) for row in range(n)],
    )
    sys.setprofile(count)
    try:
        paired(scores, scores)
    finally:
        sys.setprofile(None)
    assert calls < 25_000
