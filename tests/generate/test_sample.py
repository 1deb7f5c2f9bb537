"""Is a token drawn as the settings say, from its own row alone?"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic.errors import RecipeError
from moesaic.generate import GREEDY, Sampling, choose
from moesaic.generate.sample import probabilities

LOGITS = torch.tensor([[0.5, 0.2, 0.2, 0.1]]).log()


def many(logits: torch.Tensor, sampling: Sampling, draws: int = 1000) -> torch.Tensor:
    """How often each token is drawn, by so many rows alike."""
    ids = choose(logits.expand(draws, -1), [sampling] * draws, sampling.generators(draws))
    return torch.bincount(ids, minlength=logits.shape[1]) / draws


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("temperature", value) for value in (-1.0, math.nan, math.inf, 1e-9)],
        *[("top_p", value) for value in (0.0, -0.1, 1.1, math.nan)],
        ("top_k", -1),
        ("seed", -1),
        ("seed", 2**63),
    ],
)
def test_impossible_settings_are_refused_by_name(field, value):
    with pytest.raises(RecipeError, match=f"^{field}: .*expected .*; got"):
        Sampling(**{field: value})


def test_greedy_takes_the_most_probable_of_each_row():
    ids = choose(torch.tensor([[0.0, 2, 1], [5, 2, 1]]), [GREEDY] * 2, GREEDY.generators(2))
    assert ids.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(temperature=1.0, seed=1), [0.5, 0.2, 0.2, 0.1]),
        (Sampling(temperature=0.5, seed=1), [0.25 / 0.34, 0.04 / 0.34, 0.04 / 0.34, 0.01 / 0.34]),
        (Sampling(temperature=1.0, top_k=1, seed=1), [1, 0, 0, 0]),
        (Sampling(temperature=1.0, top_k=2, seed=1), [5 / 9, 2 / 9, 2 / 9, 0]),  # a tie is admitted whole
        (Sampling(temperature=1.0, top_k=99, seed=1), [0.5, 0.2, 0.2, 0.1]),
        (Sampling(temperature=1.0, top_p=0.45, seed=1), [1, 0, 0, 0]),
        (Sampling(temperature=1.0, top_p=0.85, seed=1), [5 / 9, 2 / 9, 2 / 9, 0]),
        (Sampling(temperature=1.0, top_k=3, top_p=0.55, seed=1), [1, 0, 0, 0]),  # 5 / 9 of what top_k leaves
        (Sampling(temperature=1e-6, seed=1), [1, 0, 0, 0]),
    ],
)
def test_tokens_are_drawn_as_often_as_they_should_be(sampling, expected):
    torch.testing.assert_close(probabilities(LOGITS, sampling), torch.tensor([expected]).float())
    torch.testing.assert_close(many(LOGITS, sampling), torch.tensor(expected).float(), atol=0.05, rtol=0)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 6),
    st.integers(2, 300),
    st.sampled_from([0, 1, 5]),
    st.sampled_from([0.1, 0.9, 1.0]),
    st.integers(0, 2**40),
)
def test_a_row_draws_the_same_alone_and_beside_others(n, v, top_k, top_p, seed):
    logits = torch.randn(n, v, generator=torch.Generator().manual_seed(seed)) * 4
    sampling = Sampling(temperature=0.8, top_k=top_k, top_p=top_p, seed=seed)
    together = choose(logits, [sampling] * n, sampling.generators(n))
    alone = [choose(row[None], [sampling], [g]) for row, g in zip(logits, sampling.generators(n), strict=True)]
    assert together.tolist() == torch.cat(alone).tolist()


def test_nearly_equal_tokens_are_drawn_alike_whichever_the_rounding_puts_first():
    logits = torch.zeros(200, 4)
    logits[:, 1] += 1e-6
    for sampling in (Sampling(temperature=1.0, seed=0), Sampling(temperature=1.0, top_p=0.99, seed=0)):
        one = choose(logits, [sampling] * 200, sampling.generators(200))
        other = choose(logits.roll(1, -1), [sampling] * 200, sampling.generators(200))
        assert one.tolist() == other.tolist()


def test_a_ruled_out_token_is_never_drawn_and_without_a_seed_draws_differ():
    logits = torch.full((1, 50), -torch.inf)
    logits[0, [3, 7]] = 0.0
    assert many(logits, Sampling(temperature=1.0)).nonzero().flatten().tolist() == [3, 7]
    assert choose(logits, [GREEDY], GREEDY.generators(1)).tolist() == [3]


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.0), Sampling(temperature=1.0, top_k=2, top_p=0.5)])
@pytest.mark.parametrize("bad", [[0.0, math.nan, 1], [0.0, math.inf, 1], [-math.inf] * 3])
def test_a_row_whose_logits_are_no_numbers_gets_no_token(sampling, bad):
    logits = torch.tensor([[0.0, 1, 2], bad, [2.0, 1, 0]])
    chosen = choose(logits, [sampling] * 3, sampling.generators(3)).tolist()
    assert [id < 0 for id in chosen] == [False, True, False]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_float_can_be_drawn_from(dtype):
    expected = many(LOGITS, Sampling(temperature=1.0, seed=3), 50)
    torch.testing.assert_close(many(LOGITS.to(dtype), Sampling(temperature=1.0, seed=3), 50), expected)
