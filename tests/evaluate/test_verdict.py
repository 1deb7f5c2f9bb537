"""The controls and the gap: by hand, as identities, and honest where a figure is missing."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic.errors import CompatibilityError, DataError
from moesaic.evaluate.statistics import Scores, mean_nats, paired
from moesaic.evaluate.verdict import judge

DOMAINS = ["code"] * 30 + ["math"] * 30 + ["unseen"] * 20
TOKENS = np.random.default_rng(0).integers(5, 30, len(DOMAINS))
HARD = np.random.default_rng(1).normal(3, 0.3, len(DOMAINS))


def contender(code: float, math: float, unseen: float = 0.0, noise: int | None = None) -> Scores:
    """So many nats per token more than the common difficulty of the rows, by domain."""
    more = np.array([{"code": code, "math": math, "unseen": unseen}[domain] for domain in DOMAINS])
    if noise is not None:
        more = more + np.random.default_rng(noise).normal(0, 0.02, len(more))
    return Scores((HARD + more) * TOKENS, TOKENS, DOMAINS, [str(row // 2) for row in range(len(DOMAINS))])


def typical(**changes: Scores) -> dict[str, Scores]:
    parts = {
        "base": contender(0, 0),
        "expert:code": contender(-0.4, 0.3, 0.2),
        "expert:math": contender(0.2, -0.5, 0.1),
        "router": contender(-0.38, -0.45, 0.05, noise=2),
        "joint": contender(-0.2, -0.2, noise=3),
    }
    return parts | changes


def barely(better: float) -> Scores:
    """Better than `contender(0, 0)` by exactly so much on the trained domains, and far less than it varies by."""
    noise = np.random.default_rng(7).normal(0, 1, len(DOMAINS))
    noise -= np.average(noise[:60], weights=TOKENS[:60]) + better
    return replace(contender(0, 0), nats=(HARD + noise) * TOKENS)


def rows(nats: list[list[float]], domains: list[str]) -> list[Scores]:
    return [
        Scores(np.array(one, dtype=np.float64), np.ones(len(one)), domains, [str(row) for row in range(len(one))])
        for one in nats
    ]


def test_every_number_by_hand():
    domains = ["a", "b", "c", "unseen"]
    base, first, second, router = rows([[4, 4, 4, 1], [1, 5, 7, 3], [6, 2, 3, 5], [1, 5, 4, 4]], domains)
    result = judge({"base": base, "expert:a": first, "expert:b": second, "router": router}, resamples=20)
    nats = {name: control["nats"] for name, control in result["controls"].items()}
    assert nats["random"] == {"a": 3.5, "b": 3.5, "c": 5, "all": 4, "unseen": 4}
    assert nats["oracle"] == {"a": 1, "b": 2, "c": 4, "all": pytest.approx(7 / 3), "unseen": 1}  # c has no expert
    assert nats["oracle_best"] == {"a": 1, "b": 2, "c": 3, "all": 2, "unseen": 1}
    assert result["best_single"] == {"name": "expert:b", "nats": pytest.approx(11 / 3), "chosen_on": "test"}
    assert result["best_part"]["name"] == "expert:b"
    assert result["regret"]["value"] == pytest.approx(10 / 3 - 7 / 3)
    assert result["gap_closed"]["value"] == pytest.approx((11 / 3 - 10 / 3) / (11 / 3 - 7 / 3))
    assert result["controls"]["base"]["versus_router"]["difference"] == pytest.approx(4 - 10 / 3)
    assert result["controls"]["base"]["versus_router_unseen"]["difference"] == -3
    assert result["controls"]["router"]["versus_router"] is None
    assert result["controls"]["base"]["perplexity"]["unseen"] == pytest.approx(np.e)
    assert result["rows"] == dict.fromkeys(domains, 1)


def test_the_mean_over_domains_counts_each_domain_once_and_leaves_out_what_is_unseen():
    tokens, domains = np.array([1.0, 9.0, 5.0]), ["short", "long", "unseen"]
    one = Scores(np.array([4.0, 18.0, 50.0]), tokens, domains, ["0", "1", "2"])
    control = judge({"base": one}, resamples=5)["controls"]["base"]
    assert control["nats"]["all"] == pytest.approx(22 / 10) and control["over_domains"] == pytest.approx((4 + 2) / 2)


def test_the_best_single_expert_is_an_expert_and_the_best_part_may_be_the_base():
    """The gap is measured from the best part, here the base, and not from the best expert."""
    base, first, second, router = rows([[3, 3], [1, 7], [6, 1], [2, 2]], ["a", "b"])
    result = judge({"base": base, "expert:a": first, "expert:b": second, "router": router}, resamples=20)
    assert result["best_single"] == {"name": "expert:b", "nats": 3.5, "chosen_on": "test"}
    assert result["best_part"] == {"name": "base", "nats": 3.0, "chosen_on": "test"}
    assert result["gap_closed"]["value"] == pytest.approx((3 - 2) / (3 - 1))


def test_the_layout_is_plain_json_in_the_plans_order():
    scores = typical(
        keyword=contender(-0.1, 0.1),
        average=contender(0.1, 0.1),
        uniform=contender(0.1, 0.1),
        joint_wide=contender(-0.3, -0.3),
    )
    shuffled = dict(sorted(scores.items(), reverse=True))
    result = judge(shuffled, costs={"router": {"parameters": 5, "bytes": 20, "tokens_per_second": 99.5}})
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert next(iter(result)) == "verdict"
    assert [name for name in result["controls"] if not name.startswith("expert:")] == [
        *("base", "joint", "joint_wide", "average", "uniform", "random", "keyword"),
        *("router", "oracle", "oracle_best"),
    ]
    assert set(result["controls"]["joint"]) == {
        *("nats", "perplexity", "over_domains", "interval", "versus_router", "versus_router_unseen")
    }
    assert result["controls"]["router"]["cost"] == {"parameters": 5, "bytes": 20}, "speeds are not repeatable"
    assert set(result["verdict"]) == {*("use", "sentence", "tied", "best", "runner_up", "bytes", "reasons")}


def test_intervals_are_the_paired_ones():
    scores = typical()
    result = judge(scores, seed=5, resamples=100, level=0.8)
    expected = paired(scores["joint"], scores["router"], seed=5, resamples=100, level=0.8)
    versus = result["controls"]["joint"]["versus_router"]
    assert (versus["difference"], *versus["interval"]) == pytest.approx(tuple(expected))
    unseen = result["controls"]["joint"]["versus_router_unseen"]
    assert (unseen["difference"], *unseen["interval"]) == pytest.approx(
        tuple(paired(scores["joint"], scores["router"], "unseen", seed=5, resamples=100, level=0.8))
    )


@settings(deadline=None)
@given(
    st.integers(1, 4).flatmap(
        lambda experts: st.lists(
            st.lists(st.floats(0, 9), min_size=experts + 2, max_size=experts + 2), min_size=1, max_size=12
        )
    )
)
def test_identities(table: list[list[float]]):
    """Columns: base, router, experts. Row i is at home with expert i; its home expert is made the best one."""
    names = [f"d{number}" for number in range(len(table[0]) - 2)]
    domains = [names[row % len(names)] for row in range(len(table))]
    for row, values in enumerate(table):
        values[2 + row % len(names)] = min(values)
    base, router, *experts = rows([list(column) for column in zip(*table, strict=True)], domains)
    scores = {"base": base, "router": router} | {
        f"expert:{name}": one for name, one in zip(names, experts, strict=True)
    }
    result = judge(scores, resamples=10)
    nats = {name: control["nats"]["all"] for name, control in result["controls"].items()}
    assert nats["random"] == pytest.approx(np.mean([nats[f"expert:{name}"] for name in names]))
    assert nats["oracle_best"] <= nats["oracle"] + 1e-9
    assert nats["oracle"] <= min(nats["random"], nats["router"], result["best_part"]["nats"]) + 1e-9
    assert result["regret"]["value"] >= -1e-9
    assert result["best_part"]["nats"] == pytest.approx(min(nats["base"], result["best_single"]["nats"]))
    assert result["gap_closed"]["value"] is None or result["gap_closed"]["value"] <= 1 + 1e-6


def test_a_gap_of_rounding_has_no_share():
    """Without row 1 a resample has a gap of 1e-310, by which nothing can be divided."""
    names = ("base", "router", "expert:d0", "expert:d1")
    table = [[9.0, 9, 9, 9], [1.0, 1, 1, 1], [0.0, 1, 0, 1e-310], [9.0, 0, 9, 0]]
    scores = dict(zip(names, rows(table, ["d0", "d1", "d0", "d1"]), strict=True))
    low, high = judge(scores, resamples=10)["gap_closed"]["interval"]
    assert -9 <= low <= high < 0


def test_all_of_the_gap_or_none_of_it():
    scores = typical()
    code, math = scores["expert:code"].nats, scores["expert:math"].nats
    oracle = replace(scores["base"], nats=np.where(np.array(DOMAINS) == "code", code, math))
    perfect = judge(scores | {"router": oracle})
    assert perfect["gap_closed"]["value"] == pytest.approx(1)
    assert perfect["gap_closed"]["interval"] == pytest.approx([1, 1])
    assert perfect["regret"]["value"] == pytest.approx(0)

    part = judge(scores)["best_part"]["name"]
    none = judge(scores | {"router": scores[part]})
    assert none["gap_closed"]["value"] == pytest.approx(0)
    assert none["gap_closed"]["interval"] == pytest.approx([0, 0])
    assert none["gap_closed"]["reason"] is None

    low, high = judge(scores)["gap_closed"]["interval"]
    assert 0 < low < judge(scores)["gap_closed"]["value"] < high < 1


def test_where_there_is_no_gap_it_says_so():
    useless = {"base": contender(0, 0), "expert:code": contender(0.1, 0), "expert:math": contender(0, 0.1)}
    gap = judge({**useless, "router": contender(0, 0)})["gap_closed"]
    assert gap["value"] is None and gap["interval"] is None and "no gap to close" in gap["reason"]
    lead, lost, code = barely(0.01), contender(9, 9), np.array(DOMAINS) == "code"
    scores = {
        "base": contender(0, 0),
        "expert:code": replace(lead, nats=np.where(code, lead.nats, lost.nats)),
        "expert:math": replace(lead, nats=np.where(code, lost.nats, lead.nats)),
        "router": contender(0.1, 0.1),
    }
    gap = judge(scores)["gap_closed"]
    assert gap["value"] == pytest.approx(-10)
    assert gap["interval"] is None and "is not above 0" in gap["reason"]


def test_the_best_part_is_chosen_on_validation_where_that_is_given():
    scores = typical()
    flipped = {"base": contender(0, 0), "expert:code": contender(-5, -5), "expert:math": contender(1, 1)}
    result = judge(scores, select_on=flipped)
    assert judge(scores)["best_single"]["name"] == "expert:math"
    assert result["best_single"]["name"] == result["best_part"]["name"] == "expert:code"
    assert result["best_single"]["chosen_on"] == "validation"
    assert result["best_single"]["nats"] == mean_nats(scores["expert:code"])
    with pytest.raises(DataError, match=r"no validation scores of a part.*none of base"):
        judge(scores, select_on={name: one for name, one in flipped.items() if name != "base"})


def test_whatever_is_missing_is_said_not_invented():
    alone = judge({"base": contender(0, 0)})
    assert list(alone["controls"]) == ["base"]
    assert alone["best_single"] is None
    assert alone["best_part"]["name"] == "base"
    assert alone["regret"] == {"value": None, "interval": None, "reason": "no mixture and no oracle"}
    assert alone["gap_closed"]["reason"] == "no mixture and no oracle"
    assert alone["verdict"]["runner_up"] is None
    assert alone["verdict"]["sentence"].startswith("Use the base alone: ")
    assert "no other contender was measured" in alone["verdict"]["sentence"]

    orphans = judge({"expert:code": contender(0, 0), "router": contender(0, 0)})  # math rows belong to nobody
    assert "oracle" not in orphans["controls"] and "oracle_best" in orphans["controls"]
    assert orphans["regret"]["reason"] == "no oracle"
    assert (
        judge({"joint": contender(0, 0), "router": contender(0, 0)})["gap_closed"]["reason"] == "no base and no expert"
    )


def test_unknown_contenders_are_refused():
    for name in ("jont", "oracle", "random", "expert", "expert:", "expert:unseen", "expert:all", "joint:wide", "math"):
        with pytest.raises(DataError, match="not a contender"):
            judge({"base": contender(0, 0), name: contender(0, 0)})
    with pytest.raises(DataError, match="no contender that could be used"):
        judge({"uniform": contender(0, 0)})
    with pytest.raises(DataError, match="no contender that could be used"):
        judge({})
    short = Scores(HARD[:60] * TOKENS[:60], TOKENS[:60], DOMAINS[:60], [str(row) for row in range(60)])
    with pytest.raises(CompatibilityError, match="same rows"):
        judge({"base": contender(0, 0), "router": short})
