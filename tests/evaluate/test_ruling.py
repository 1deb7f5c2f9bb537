"""The choice of a contender: what ties with the best, and the cheapest of it."""

from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic.evaluate.ruling import cheapest_first
from moesaic.evaluate.statistics import Scores, paired
from moesaic.evaluate.verdict import judge

ROWS = 40
NAMES = ("base", "average", "expert:code", "expert:math", "joint", "joint_wide", "router")


def scored(nats: np.ndarray) -> Scores:
    domains = ["code", "math"] * (ROWS // 2)
    return Scores(nats, np.ones(ROWS), domains, [str(row) for row in range(ROWS)])


SIZES, SPEEDS = st.sampled_from([None, 10, 10, 20, 30]), st.sampled_from([None, 5.0, 7.0])
LEVELS = st.sampled_from([0.0, 0.005, 0.02, 0.1, 0.5])
DRAWN = st.dictionaries(st.sampled_from(NAMES), st.tuples(LEVELS, SIZES, SPEEDS), min_size=1)
"""Contenders that differ by much, by little or not at all: level, bytes and speed of each."""


@settings(deadline=None, max_examples=150)
@given(DRAWN, st.sampled_from([0.0, 0.02, 0.3]), st.integers(0, 10**6))
def test_no_contender_is_preferred_by_a_difference_whose_interval_holds_0(drawn, noise, seed):
    generator = np.random.default_rng(seed)
    hard = generator.normal(3, 1, ROWS)
    scores = {name: scored(hard + level + generator.normal(0, 1, ROWS) * noise) for name, (level, *_) in drawn.items()}
    costs = {name: {"bytes": count, "tokens_per_second": speed} for name, (_, count, speed) in drawn.items()}
    verdict = judge(scores, costs=costs, seed=1, resamples=60)["verdict"]
    use, best, sentence = verdict["use"], verdict["best"], verdict["sentence"]
    assert scores[best].mean() == min(one.mean() for one in scores.values())
    for name in scores:
        low, high = paired(scores[name], scores[best], seed=1, resamples=60)[1:]
        assert (name in verdict["tied"]) == (low <= 1e-9), "tied with the best: the interval reaches 0"
    assert use == verdict["tied"][0]
    sizes = [costs[name]["bytes"] for name in verdict["tied"]]
    if None not in sizes:
        assert sizes == sorted(sizes)
    if (other := verdict["runner_up"]) is None:
        assert "better" not in sentence and "good" not in sentence
        return
    low, high = other["interval"]
    holds_0 = low <= 1e-9 and high >= -1e-9
    assert (", better than " in sentence) == (not holds_0) == (len(verdict["tied"]) == 1)
    assert ("equally good as " in sentence or "not clearly different from " in sentence) == holds_0
    assert not holds_0 or sentence.rpartition(": ")[2].split()[-1] in ("active.", "serve.", "faster.")


def test_a_tie_of_the_best_goes_to_the_fewest_bytes_then_to_the_fastest_then_to_the_simplest():
    names = ["router", "joint", "expert:code"]

    def first(**costs: dict[str, Any]) -> str:
        found = {tuple(cheapest_first(list(some), {"expert:code": {}} | costs)) for some in permutations(names)}
        (order,) = found
        return order[0]

    few, many = {"bytes": 9}, {"bytes": 10}
    assert first(router=few, joint=many, **{"expert:code": many}) == "router"
    assert first(router=many, joint=many, **{"expert:code": many}) == "expert:code"
    fast = [{**many, "tokens_per_second": float(speed)} for speed in (3, 2, 1)]
    assert first(router=fast[0], joint=fast[1], **{"expert:code": fast[2]}) == "router"
    assert first(router=fast[0], joint=many, **{"expert:code": fast[2]}) == "expert:code", "a speed is not known"
    assert first(router=few, joint=many) == "expert:code", "a number of bytes is not known"


def test_what_is_clearly_worse_is_not_asked_for_its_price():
    hard = np.linspace(2, 4, ROWS)
    scores = {"router": scored(hard), "joint": scored(hard + 0.001)}
    verdict = judge(scores, costs={"router": {"bytes": 100}, "joint": {"bytes": 1}})["verdict"]
    assert verdict["use"] == "router" and verdict["tied"] == ["router"]
    assert "With 1 bytes active, the joint expert is 0.0% worse, clearly." in verdict["reasons"]


def test_of_equal_contenders_the_simplest_is_used():
    scores = dict.fromkeys(reversed(NAMES), scored(np.linspace(2, 4, ROWS)))
    verdict = judge(scores)["verdict"]
    assert [name.partition(":")[0] for name in verdict["tied"]] == [name.partition(":")[0] for name in NAMES]
    assert verdict["use"] == verdict["best"] == "base"


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_a_wider_interval_ties_more(level):
    random = np.random.default_rng(5)
    hard = random.normal(3, 1, ROWS)
    scores = {"base": scored(hard + 0.05 + random.normal(0, 0.2, ROWS)), "router": scored(hard)}
    tied = judge(scores, level=level)["verdict"]["tied"]
    assert (len(tied) == 2) == (level == 0.95)
