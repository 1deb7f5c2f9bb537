"""A guard learns which prompts belong to no expert, and leaves at most a stated share of the others to the base."""

from dataclasses import replace
from math import log

import pytest
import torch

from moesaic.routing import Routing, Selection
from moesaic.routing.guard import LEAST_PART, Guard, Opinion, Ruling, guarded, logit, odds, trust
from moesaic.train.guards import (
    REFUSED,
    REFUSED_IN_OTHER_FORMS,
    Outcomes,
    give_voice,
    limit_of,
    refusable,
    temperature_of,
    train_guard,
)

EXPERTS, WIDTH = 3, 12


def outcomes(seed: int, rows: int = 200, apart: float = 6.0) -> Outcomes:
    """Clouds around one centre for each expert and one for none of them; the second half of the rows is changed."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(EXPERTS + 1).repeat(rows)
    vectors = torch.randn(len(labels), WIDTH, generator=draw) + apart * torch.eye(WIDTH)[labels]
    mine, late = labels < EXPERTS, torch.arange(len(labels)) >= len(labels) // 2
    return Outcomes(vectors, None, labels, mine & ~late, mine & late)


def test_it_abstains_on_neutral_prompts_and_on_the_stated_share_of_others():
    guard, found = train_guard(outcomes(0), outcomes(1), EXPERTS, "auto", seed=0)
    judged = outcomes(2)
    silent = odds(guard(judged.vectors, None).outcomes) < guard.limit
    assert silent[judged.labels == EXPERTS].double().mean() > 0.95
    assert silent[judged.labels < EXPERTS].double().mean() < 0.03
    assert found["auroc"] > 0.99 and found["abstained_own"] <= REFUSED


def test_probabilities_of_a_guard_are_right_as_often_as_they_say():
    near = {"apart": 1.5}
    guard, _ = train_guard(outcomes(0, **near), outcomes(1, **near), EXPERTS, 0.5, seed=0)
    judged = outcomes(2, 1000, **near)
    said, true = odds(guard(judged.vectors, None).outcomes).sigmoid(), (judged.labels < EXPERTS).float()
    for low in (0.2, 0.4, 0.6, 0.8):
        some = (said >= low) & (said < low + 0.2)
        assert abs(said[some].mean() - true[some].mean()) < 0.1


def test_few_prompts_show_less_than_many():
    """Of 1,000 the 2% were 20; the upper bounds of Wilson for 12 and 13, one-sided at 95%, are 1.9% and 2.04%."""
    assert [refusable(prompts, 0.02) for prompts in (10, 364, 1000)] == [0, 2, 12]
    judged = outcomes(0, 10)
    assert limit_of(torch.arange(len(judged.labels)) - 50.0, judged, "auto") == -50


def test_the_limit_is_a_quantile_or_the_odds_of_a_number():
    judged = outcomes(0, 500)
    own = torch.arange(len(judged.labels)) - 1e4
    auto = limit_of(own, judged, "auto")
    assert 0 < (own[judged.as_is] < auto).double().mean() <= REFUSED
    assert (own[judged.changed] < auto).double().mean() <= REFUSED_IN_OTHER_FORMS
    assert limit_of(own + 2e4, judged, "auto") == 0.0, "never above even odds"
    assert limit_of(own, judged, 0.9) == pytest.approx(log(9)) == logit(0.9)


def test_the_base_never_answers_less_probably_than_the_experts_nor_they_where_it_costs_no_own_prompt():
    """Where the outcomes are far apart, the more probable one answers, and no probability is without doubt."""
    guard, found = train_guard(outcomes(0, apart=12.0), outcomes(1, apart=12.0), EXPERTS, "auto", seed=0)
    assert guard.limit == 0.0 and found["abstained_own"] == 0.0
    judged = outcomes(2, apart=12.0)
    assert odds(guard(judged.vectors, None).outcomes).sigmoid().median() < 0.9999


def test_a_prompt_that_stands_many_times_counts_once_for_the_limit():
    judged = outcomes(0, 500)
    own = torch.linspace(-5, -1, len(judged.labels))
    own[judged.labels == EXPERTS] -= 10
    alone = limit_of(own, judged, "auto")
    low = torch.where(judged.as_is)[0][:100]
    own[low] = -50.0
    assert limit_of(own, judged, "auto") >= alone - 0.1


@pytest.mark.parametrize("half", [0, 1])
def test_each_network_on_the_wording_knows_what_the_others_cannot(half: int):
    def rows(seed: int) -> Outcomes:
        first = outcomes(seed)
        blind = torch.randn(2, *first.vectors.shape, generator=torch.Generator().manual_seed(seed))
        wording = torch.cat([first.vectors, blind[1]] if half == 0 else [blind[1], first.vectors], 1)
        return replace(first, vectors=blind[0], wording=wording)

    guard, found = train_guard(rows(0), rows(1), EXPERTS, "auto", seed=0)
    assert found["auroc"] > 0.99
    assert Guard(**guard.shape).shape == guard.shape and guard.shape["wording"] == WIDTH


def test_a_voice_corrects_a_router_that_knows_nothing_and_is_calibrated():
    def rows(seed: int, count: int = 200) -> Outcomes:
        first = outcomes(seed, count, apart=2.5)
        blind = torch.randn(first.vectors.shape, generator=torch.Generator().manual_seed(seed))
        return replace(first, vectors=blind, wording=first.vectors.repeat(1, 2))

    held_out, judged = rows(1), rows(2, 1000)
    guard, _ = train_guard(rows(0), held_out, EXPERTS, "auto", seed=0)
    assert guard.ruling.joint is None, "no voice unless it is given"
    mine, own = held_out.labels < EXPERTS, judged.labels < EXPERTS
    noise = torch.randn(len(judged.labels), EXPERTS, generator=torch.Generator().manual_seed(0))
    joint = give_voice(guard, noise[: int(mine.sum())], held_out)
    assert (joint.argmax(-1) == held_out.labels[mine]).double().mean() > 0.8
    opinion = guard(judged.vectors, judged.wording)
    routing = guarded(Selection(), noise, Opinion(*(one.detach() for one in opinion)), guard.ruling)
    shares = routing.logits.softmax(-1)[own]
    right = (shares.argmax(-1) == judged.labels[own]).double().mean()
    assert right > 0.8 and abs(shares.amax(-1).double().mean() - right) < 0.05


def test_the_same_seed_gives_the_same_guard():
    one, other = (train_guard(outcomes(0), outcomes(1), EXPERTS, "auto", seed=3)[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_a_guard_without_a_voice_keeps_the_logits_and_the_order_of_experts_where_it_abstains():
    logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
    outcomes = torch.tensor([[3.0, -9.0, 0.0], [-3.0, -9.0, 0.0], [-50.0, 0.0, 0.0]])
    routing = guarded(Selection(), logits, Opinion(outcomes, outcomes[:, :-1]), Ruling(torch.tensor(0.0)))
    own = odds(outcomes)
    assert routing.best.tolist() == [0, -1, 1] and torch.equal(routing.logits, logits)
    torch.testing.assert_close(routing.probabilities[:, :-1].sum(-1), own.sigmoid())
    torch.testing.assert_close(routing.probabilities.sum(-1), torch.ones(3))
    assert routing.probabilities[1].argsort().tolist() == [1, 0, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_between_the_limit_and_even_odds_the_base_has_a_part_in_the_answer(dtype: torch.dtype):
    own = torch.tensor([0.1, 0.2 - 1e-3, 0.2, 0.35, 0.5, 0.9], dtype=torch.float64).logit().to(dtype)
    limit = own[2].clone()
    expected = torch.tensor([0.0, 0.0, LEAST_PART, 0.5, 1.0, 1.0], dtype=dtype)
    torch.testing.assert_close(trust(own, limit), expected, atol=0.02 if dtype == torch.bfloat16 else 1e-6, rtol=0)
    for above in (0.0, 1.0):  # even odds or more are asked for: all or nothing
        assert trust(own, torch.tensor(above, dtype=dtype)).tolist() == (own >= above).double().tolist()
    logits, outcomes = torch.tensor([[2.0, 0.0]], dtype=dtype), torch.tensor([[0.0, -40.0, 0.6190392]], dtype=dtype)
    routing = guarded(Selection(), logits, Opinion(outcomes, outcomes[:, :-1]), Ruling(limit))
    assert routing.best.tolist() == [0] and 0.48 < routing.weights.sum().item() < 0.52


def test_a_voice_adds_to_the_logits_and_an_expert_that_is_never_chosen_stays_so():
    logits, outcomes = torch.tensor([[2.0, 0.0], [-torch.inf, 0.0]]), torch.tensor([[9.0, 9.0, -9.0]]).repeat(2, 1)
    opinion = Opinion(outcomes, torch.tensor([[0.0, 5.0]]).repeat(2, 1))
    routing = guarded(Selection(), logits, opinion, Ruling(torch.tensor(0.0), torch.tensor(2.0)))
    assert routing.logits[0].tolist() == [1.0, 2.5] and routing.best.tolist() == [1, 1]
    assert routing.weights[1].tolist() == [0.0, 1.0]


def test_without_a_guard_the_base_has_no_share_except_where_the_router_is_silent():
    routing = guarded(Selection(), torch.tensor([[1.0, 0.0], [-torch.inf, -torch.inf]]), None, None)
    assert routing.probabilities[:, -1].tolist() == [0.0, 1.0]
    assert Routing.cat([routing[:1], routing[1:]]).best.tolist() == [0, -1]


def test_logits_of_one_expert_need_no_temperature():
    assert temperature_of(torch.tensor([[2.0], [-3.0]]), torch.tensor([0, 0])) == 1.0


def test_a_guard_is_built_again_from_its_shape():
    guard = Guard(WIDTH, EXPERTS, [8])
    assert Guard(**guard.shape).shape == guard.shape == {"num_features": WIDTH, "num_experts": EXPERTS, "hidden": [8]}
