"""Tests of matchings: costs are interpolated, never extrapolated, and under-trained models get no verdict."""

import numpy as np
import pytest

from moesaic.lab.matching import MATCHINGS, Measured, at_cost, at_parameters, at_tokens, between, matched
from moesaic.lab.wording import sentence

SIZE = np.full(40, 100.0)
TOKENS = [400_000, 800_000, 1_600_000]


def measured(depth: int, level: float, seed: int = 0, **other: float) -> Measured:
    """Nats that fall by 10 with each doubling of the tokens, and by 5 with each layer; a little noise of every seed."""
    draw = np.random.default_rng(seed + depth)
    fall = np.array([0.0, 10.0, 20.0])[:, None, None]
    nats = level - 5 * depth - fall + draw.normal(0, 0.1, (3, 3, 40))
    facts = {"parameters": 30_000 * depth, "trained": 30_000 * depth, "flops": 1e5 * depth, "speed": 1e4 / depth}
    return Measured(**{**facts, **other}, tokens=TOKENS, nats=nats)  # type: ignore[arg-type]


DENSE = {depth: measured(depth, 200.0) for depth in (2, 3, 4)}


def test_a_cost_between_two_decays_is_interpolated_in_its_logarithm() -> None:
    values = np.array([[8.0], [4.0], [0.0]])
    assert [float(between([1, 4, 16], values, x)[0]) for x in (1, 2, 4, 8, 16)] == pytest.approx([8, 6, 4, 2, 0])
    assert between([7], values[:1], 7).tolist() == [8.0]


def test_equal_tokens_compare_the_same_depth_at_the_last_decay() -> None:
    (pair,) = at_tokens({3: measured(3, 190.0, 9)}, DENSE)
    assert pair.depth == 3 and np.array_equal(pair.b, DENSE[3].nats[-1]) and pair.least == pytest.approx(17.8, abs=0.1)


def test_at_equal_cost_the_cheaper_arm_reads_more_tokens() -> None:
    costly = {2: measured(2, 200.0, 5, flops=4e5)}
    (pair,) = at_cost(lambda one: one.flops)(costly, DENSE)
    assert np.array_equal(pair.b, DENSE[2].nats[-1]), "the cheaper arm at its last decay"
    assert pair.a == pytest.approx(costly[2].at(800_000)), "the other after half the tokens"
    assert pair.least == pytest.approx(800_000 / 60_000)


def test_a_cost_that_one_arm_never_reached_gives_no_pair() -> None:
    assert [*at_cost(lambda one: one.flops)({2: measured(2, 200.0, 5, flops=16e5)}, DENSE)] == []


def test_equal_parameters_are_interpolated_between_depths_and_never_outside() -> None:
    wide = {depth: measured(depth, 200.0, 7, parameters=45_000 * depth) for depth in (2, 3, 4)}
    pairs = [*at_parameters(wide, DENSE)]
    assert [pair.depth for pair in pairs] == [3, 4], "60,000 parameters are fewer than the smallest has"
    assert np.allclose(pairs[0].a, wide[2].nats[-1]), "90,000 parameters: 2 wide layers or 3 others"
    assert pairs[1].a.mean() == pytest.approx(200 - 20 - 10 - 5 * np.log(120 / 90) / np.log(135 / 90), abs=0.1)


@pytest.mark.parametrize("name", MATCHINGS)
def test_an_arm_that_is_drawn_anew_is_undecided_and_a_worse_one_loses(name: str) -> None:
    again = {depth: measured(depth, 200.0, 50) for depth in (2, 3, 4)}
    worse = {depth: measured(depth, 203.0, 60) for depth in (2, 3, 4)}
    for arm, expected in ((again, "undecided"), (worse, "worse")):
        found = matched(MATCHINGS[name], arm, DENSE, SIZE)
        assert found.comparison and found.comparison.outcome == expected and found.depths == [2, 3, 4]


def test_there_is_no_verdict_on_models_that_learned_too_little_or_have_no_cost_in_common() -> None:
    young = {2: measured(2, 100.0, 5, trained=1_000_000)}
    found = matched(MATCHINGS["tokens"], young, DENSE, SIZE)
    assert found.comparison is None and found.why == "under-trained, 1.6 tokens a parameter of at least 10"
    assert matched(MATCHINGS["parameters"], {2: measured(2, 100.0, 5, parameters=7)}, DENSE, SIZE).why == (
        "no parameters that both reached"
    )


def test_a_depth_that_learned_too_little_is_left_out() -> None:
    arm = {2: measured(2, 203.0, 5), 3: measured(3, 100.0, 5, trained=1_000_000)}
    found = matched(MATCHINGS["tokens"], arm, DENSE, SIZE)
    assert found.depths == [2] and found.comparison and found.comparison.outcome == "worse"


def test_the_sentence_names_every_outcome_and_what_the_study_could_have_seen() -> None:
    arms = {
        "again": {2: measured(2, 200.0, 50)},
        "planted": {2: measured(2, 205.0, 60)},
        "good": {2: measured(2, 190.0, 60)},
        "young": {2: measured(2, 200.0, 1, trained=1_000_000)},
    }
    found = {name: matched(MATCHINGS["tokens"], arm, DENSE, SIZE) for name, arm in arms.items()}
    told = sentence("tokens", "dense", found)
    assert told.startswith(
        "At equal tokens, good is better than dense; planted is worse than dense; "
        "again is not clearly different from dense (undecided); there is no verdict on young; "
        "the smallest difference that this study could have seen is 0.00"
    )
    assert told.endswith(" bits per byte.")
