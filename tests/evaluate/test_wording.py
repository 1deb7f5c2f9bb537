"""The words of a verdict: they say what the figures say, and no more."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from test_verdict import DOMAINS, HARD, TOKENS, contender, rows, typical

from moesaic.evaluate.statistics import Scores
from moesaic.evaluate.verdict import judge
from moesaic.evaluate.wording import spoken


def barely(better: float, noise: float = 1.0) -> Scores:
    """Better than `contender(0, 0)` by exactly so much on the trained domains, and varying by `noise` a row."""
    more = np.random.default_rng(7).normal(0, noise, len(DOMAINS))
    more -= np.average(more[:60], weights=TOKENS[:60]) + better
    return replace(contender(0, 0), nats=(HARD + more) * TOKENS)


def said(scores: dict[str, Scores], **costs: int) -> dict[str, Any]:
    return judge(scores, costs={name: {"bytes": count} for name, count in costs.items()}, seed=4)["verdict"]


def test_a_clear_lead_is_called_better_with_its_interval_and_its_one_training():
    verdict = said(typical(), router=8_120_000)
    assert verdict["use"] == verdict["best"] == "router" and verdict["runner_up"]["name"] == "joint"
    low, high = (-end for end in verdict["runner_up"]["interval"][::-1])
    amount = (
        f"{-verdict['runner_up']['difference']:.3f} (95% interval {low:.3f} to {high:.3f}, one training run, seed 4)"
    )
    assert verdict["sentence"].startswith("Use the mixture: 2.")
    assert verdict["sentence"].endswith(f" nats per token, better than the joint expert by {amount}; 8.1 MB active.")
    assert verdict["reasons"][0].startswith("Every other contender is clearly worse than the best, mixture at 2.")


def test_a_tie_within_1_percent_is_called_equally_good_and_goes_to_the_smaller():
    scores = {"joint": contender(0, 0), "router": barely(0.001, noise=0.02), "base": contender(2, 2)}
    verdict = said(scores, joint=1_500_000, router=1_700_000, base=1)
    assert (verdict["use"], verdict["best"]) == ("joint", "router")
    assert "equally good as the mixture (0.001 worse, 95% interval -0.00" in verdict["sentence"]
    assert verdict["sentence"].endswith(", one training run, seed 4): 1.5 MB instead of 1.7 MB active.")
    assert "Of these the cheapest by active bytes is chosen: joint 1.5 MB, mixture 1.7 MB." in verdict["reasons"]
    apart = said({"joint": contender(0, 0), "router": barely(0.0001, noise=0.02)})
    assert "equally good as the mixture (0.000 apart, 95% interval -0.00" in apart["sentence"]


def test_a_lead_that_is_not_clear_is_no_reason_to_prefer():
    scores = {"base": contender(0, 0), "router": barely(0.05)}
    verdict = said(scores, base=8, router=9)
    assert verdict["use"] == "base" and verdict["best"] == "router" and "better" not in verdict["sentence"]
    assert "not clearly different from the mixture (0.050 worse, 95% interval -0." in verdict["sentence"]
    assert verdict["sentence"].endswith("): 8 bytes instead of 9 bytes active.")
    flipped = said(scores, base=9, router=8)["sentence"]
    assert "Use the mixture: " in flipped and "not clearly different from the base alone (0.050 better" in flipped


@pytest.mark.parametrize(
    ("costs", "ends"),
    [
        ({}, ": simpler to serve."),
        ({"base": 7}, ": simpler to serve."),
        ({"base": 7, "router": 7}, ": as many active bytes, 7 bytes, and simpler to serve."),
    ],
)
def test_where_bytes_do_not_decide_the_simplest_is_chosen(costs, ends):
    verdict = said(dict.fromkeys(("router", "base"), contender(0, 0)), **costs)
    assert verdict["use"] == "base" and verdict["sentence"].endswith(ends)


def test_of_equal_bytes_the_faster_is_chosen_and_it_is_said():
    costs = {"base": {"bytes": 7, "tokens_per_second": 5.0}, "router": {"bytes": 7, "tokens_per_second": 6.0}}
    verdict = judge(dict.fromkeys(costs, contender(0, 0)), costs=costs)["verdict"]
    assert verdict["use"] == "router"
    assert verdict["sentence"].endswith(": as many active bytes, 7 bytes, and faster.")


def test_a_tie_of_a_mixture_and_a_dense_model_says_what_else_tells_them_apart():
    tied = said(dict.fromkeys(("router", "joint", "average"), contender(0, 0)))
    assert any("can be added, replaced and taken out without training" in one for one in tied["reasons"])
    assert any("a change of the merged average or the joint expert changes" in one for one in tied["reasons"])
    alone = said(dict.fromkeys(("router", "base"), contender(0, 0)))
    assert not any("can be added" in one for one in alone["reasons"] + said(typical())["reasons"])


@pytest.mark.parametrize(("better", "verb"), [(0.0, "ties with"), (0.05, "beats")])
def test_a_free_router_that_is_as_good_as_the_trained_one_is_named(better, verb):
    scores = typical()
    free = replace(scores["router"], nats=scores["router"].nats - better * TOKENS)
    (reason,) = (one for one in said(scores | {"keyword": free})["reasons"] if "keyword" in one)
    assert reason.startswith(f"The keyword router, which needs no training, {verb} the trained router: {better:.3f} ")
    assert not any("which needs no training" in one for one in said(typical(keyword=contender(0, 0)))["reasons"])


def test_where_the_mixture_loses_it_is_said():
    verdict = said(typical(joint=contender(-0.5, -0.6), joint_wide=contender(-0.48, -0.5)))
    assert verdict["sentence"].startswith("Use the joint expert: ")
    (reason,) = (one for one in verdict["reasons"] if one.startswith("The mixture is "))
    assert reason.startswith("The mixture is 0.1") and reason.endswith(") than the joint expert.")


def test_text_of_no_domain_may_cost_1_percent_of_the_base_and_more_is_named():
    def on_the_unseen(more: float) -> str:
        scores = typical(base=contender(0, 0), router=contender(-0.5, -0.6, more))
        (reason,) = (one for one in said(scores)["reasons"] if one.startswith("On text of no domain"))
        return reason

    assert on_the_unseen(0.1).startswith(
        "On text of no domain, the mixture is 0.100 worse (95% interval 0.100 to 0.100"
    )
    assert on_the_unseen(0.1).endswith(" than the base: 3.4%, over the limit of 1%.")
    assert on_the_unseen(0.02).endswith(" than the base.") and on_the_unseen(-0.1).endswith(" than the base.")
    assert on_the_unseen(0.0).endswith("from the base.")
    other = said(typical(joint=contender(-0.6, -0.7, 0.0)))["reasons"]
    assert len([one for one in other if one.startswith("On text of no domain")]) == 2, "the mixture's loss stays said"


def test_where_the_mean_over_domains_would_decide_otherwise_it_is_said():
    long, short = np.arange(40) % 2 == 0, np.arange(40) % 2 == 1
    tokens, domains = np.where(long, 100.0, 1.0), ["long" if one else "short" for one in long]

    def one(on_long: float, on_short: float) -> Scores:
        nats = (3 + on_long * long + on_short * short) * tokens
        return Scores(nats, tokens, domains, [str(row) for row in range(40)])

    verdict = said({"joint": one(0.1, 0.0), "router": one(0.0, 1.0)})
    assert verdict["use"] == "router"
    expected = (
        "By the mean over domains, which does not decide, the mixture is 0.450 worse (95% interval 0.450 to 0.450)"
    )
    assert f"{expected} than the joint expert." in verdict["reasons"]
    assert not any("mean over domains" in one for one in said({"joint": one(1, 1), "router": one(0, 0)})["reasons"])


def test_too_few_groups_are_named():
    scores = {name: rows([[3.0, 4.0, 5.0]], ["a", "a", "b"])[0] for name in ("base", "router")}
    assert any("a (2), b (1)" in reason for reason in said(scores)["reasons"])
    assert not any("too narrow" in reason for reason in said(typical())["reasons"] if "unseen" not in reason)


def test_speeds_are_said_where_they_were_measured():
    evaluation = judge(typical(), costs={"router": {"bytes": 8_120_000}})
    assert spoken(evaluation) == evaluation["verdict"]["sentence"]
    assert spoken(evaluation | {"timing": {"tokens_per_second": {"base": 9.0}}}) == evaluation["verdict"]["sentence"]
    speeds = {"router": 1402.4, "joint": 1700.0}
    assert spoken(evaluation | {"timing": {"tokens_per_second": speeds}}).endswith(
        "; 8.1 MB active; 1,402 tokens/s (the joint expert 1,700)."
    )
