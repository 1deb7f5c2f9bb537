"""Does the router decide among the allowed alone, and does a conversation keep its expert by the stated rule?"""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moesaic.errors import RecipeError
from moesaic.routing import Routing, Selection
from moesaic.serve.choosing import (
    CHANGES,
    HALF,
    among,
    believed,
    certainty,
    one_hot,
    renormalised,
    report_of,
    routing_of,
    stays,
)

NAMES = ("sums", "birds", "prose")
SOFT, TOP = Selection(kind="soft"), Selection()


def routing(*logits: float, base: float | None = None, select=TOP) -> Routing:
    made = select(torch.tensor([logits]))
    return made if base is None else Routing(made.weights, made.logits, torch.tensor([base]))


def test_with_everybody_allowed_nothing_changes():
    made = routing(1.0, 2.0, 0.0, base=3.0)
    assert among(made, NAMES, {*NAMES, "base"}, TOP) is made


def test_what_is_not_allowed_has_no_share_and_the_rest_keeps_its_proportions():
    made = routing(1.0, 2.0, 0.0, base=0.5, select=SOFT)
    before = report_of(made, NAMES).probabilities
    found = report_of(among(made, NAMES, {"sums", "prose", "base"}, SOFT), NAMES)
    assert found.probabilities["birds"] == found.weights["birds"] == 0
    assert found.probabilities["sums"] / found.probabilities["base"] == pytest.approx(before["sums"] / before["base"])
    assert sum(found.weights.values()) == pytest.approx(1)
    alone = report_of(among(made, NAMES, {"prose"}, SOFT), NAMES)
    assert alone.probabilities["base"] == 0 and alone.probabilities["prose"] == alone.weights["prose"] == 1


def test_the_bases_part_in_an_answer_stays_with_fewer_experts():
    made = routing(1.0, 2.0, 0.0, base=2.5)
    for select in (TOP, SOFT, Selection(kind="top_k", k=2, renormalise=False)):
        part = Routing(select(made.logits).weights * 0.25, made.logits, made.of_base)
        found = among(part, NAMES, {"sums", "prose", "base"}, select)
        assert found.weights.sum().item() == pytest.approx(0.25 * select(found.logits).weights.sum().item())
        assert among(part, NAMES, {"sums", "prose"}, select).weights.sum().item() > 0.25


def test_an_abstention_stands_while_the_base_is_allowed_and_falls_without_it():
    abstained = Routing(torch.zeros(1, 3), torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([9.0]))
    assert report_of(among(abstained, NAMES, {"sums", "base"}, TOP), NAMES).chosen == "base"
    assert report_of(among(abstained, NAMES, {"sums", "prose"}, TOP), NAMES).chosen == "sums"


def test_where_the_router_gives_the_allowed_nothing_it_says_so():
    silent = routing(*[-math.inf] * 3)
    assert report_of(among(silent, NAMES, {"sums", "base"}, TOP), NAMES).chosen == "base"
    with pytest.raises(RecipeError, match="routing.allow: the router would choose no allowed expert: sums"):
        among(silent, NAMES, {"sums"}, TOP)


@pytest.mark.parametrize(
    ("held", "new", "margin", "expected"),
    [
        (None, "sums", 0.2, False),
        ("birds", "birds", 0.2, False),
        ("birds", "sums", 0.2, True),
        ("birds", "sums", 0.1, False),
        ("base", "sums", 0.5, False),
        ("base", "sums", 0.6, True),
    ],
)
def test_the_held_expert_stays_unless_another_wins_by_the_margin(held, new, margin, expected):
    shares = {"sums": 0.55, "birds": 0.40, "base": 0.05}
    assert stays(held, new, shares, margin) is expected


@given(
    st.lists(
        st.lists(st.floats(0, 1), min_size=4, max_size=4).filter(lambda some: sum(some) > 0.1), min_size=1, max_size=5
    ),
    st.integers(0, 3000),
)
def test_a_belief_is_that_of_a_hidden_markov_model(turns, size):
    """Against the sum over all sequences of subjects, each as probable as its changes and its turns make it."""
    said, weight = [[share / sum(turn) for share in turn] for turn in turns], size / (size + HALF)
    found, expected = dict.fromkeys(NAMES, 1 / 3), [0.0] * 3
    for turn in said:
        found = believed(found, dict(zip((*NAMES, "base"), turn, strict=True)), NAMES, size)
    for path in itertools.product(range(3), repeat=len(said)):
        likely = 1 / 3
        for place, (subject, turn) in enumerate(zip(path, said, strict=True)):
            if place:
                likely *= (1 - CHANGES) * (subject == path[place - 1]) + CHANGES / 3
            likely *= turn[subject] ** weight + turn[3] ** weight / 3
        expected[path[-1]] += likely
    assert [*found.values()] == pytest.approx([one / sum(expected) for one in expected], abs=1e-9)


def test_a_turn_of_nobody_changes_no_belief_and_one_of_an_expert_moves_it():
    sure = {"sums": 0.9, "birds": 0.05, "prose": 0.05}
    why = believed(sure, {"sums": 0.0, "birds": 0.0, "prose": 0.0, "base": 1.0}, NAMES, 4)
    assert max(why, key=why.__getitem__) == "sums" and why["birds"] == why["prose"]
    owl = believed(sure, {"sums": 0.05, "birds": 0.9, "prose": 0.05, "base": 0.0}, NAMES, 400)
    assert owl["birds"] > owl["sums"] + 0.2
    few = believed(sure, {"sums": 0.05, "birds": 0.9, "prose": 0.05, "base": 0.0}, NAMES, 4)
    assert few["sums"] > few["birds"] + 0.2, "a short turn says little"


def test_who_may_not_answer_has_no_part_in_a_belief_and_who_is_gone_leaves_none():
    turn = {"sums": 0.3, "birds": 0.4, "prose": 0.0, "base": 0.3}
    found = believed({"gone": 1.0}, turn, ["sums", "birds"], 10**9)
    assert found == pytest.approx({"sums": 0.45, "birds": 0.55})
    report = report_of(routing_of(found, NAMES, TOP, routing(0.0, 0.0, 0.0)), NAMES)
    assert report.chosen == "birds"
    assert report.probabilities == pytest.approx({"sums": 0.45, "birds": 0.55, "prose": 0.0, "base": 0.0})


def test_one_hot_keeps_what_the_router_said():
    made = one_hot("base", NAMES, routing(1.0, 2.0, 0.0))
    assert report_of(made, NAMES).chosen == "base" and made.weights.sum() == 0
    made = one_hot("prose", NAMES, routing(1.0, 2.0, 0.0))
    assert report_of(made, NAMES).chosen == "prose" and made.logits.tolist() == [[1.0, 2.0, 0.0]]
    assert one_hot("base", (), Routing(torch.zeros(1, 0), torch.zeros(1, 0))).weights.shape == (1, 0)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=50))
def test_shares_of_some_outcomes_sum_to_1_and_their_certainty_lies_between_0_and_1(values):
    names = [str(index) for index in range(len(values))]
    shares = renormalised(dict(zip(names, values, strict=True)), names)
    assert sum(shares.values()) == pytest.approx(1, abs=1e-6)
    assert 0 <= certainty(shares.values()) <= 1


def test_certainty_is_0_for_equal_shares_and_1_for_one_outcome():
    assert certainty([0.25] * 4) == pytest.approx(0) and certainty([1.0, 0.0, 0.0]) == 1
    assert certainty([0.9, 0.1]) > certainty([0.6, 0.4])


def test_probabilities_of_a_thousand_experts_sum_to_1():
    names = tuple(f"e{index}" for index in range(1000))
    made = SOFT(torch.randn(1, 1000, generator=torch.Generator().manual_seed(0)))
    assert sum(report_of(made, names).probabilities.values()) == pytest.approx(1, abs=1e-12)
