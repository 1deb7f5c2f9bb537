"""Do logits become the weights that each selection promises, and does the gradient reach the router only then?"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic.errors import RecipeError
from moesaic.routing import Selection
from moesaic.routing.routers import KeywordRouter

SILENT = float("-inf")
quick = settings(max_examples=40, deadline=None)


@st.composite
def logits(draw) -> torch.Tensor:
    n, e = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    row = st.lists(st.floats(-30, 30, width=32), min_size=e, max_size=e)
    return torch.tensor(draw(st.lists(row, min_size=n, max_size=n)), dtype=torch.float64)


def probabilities(row: list[float]) -> list[float]:
    top = max(row)
    powers = [math.exp(value - top) for value in row]
    return [power / sum(powers) for power in powers]


@quick
@given(logits())
def test_soft_is_the_softmax_and_sums_to_1(x):
    routing = Selection(kind="soft")(x)
    torch.testing.assert_close(routing.weights, torch.tensor([probabilities(row) for row in x.tolist()]).double())
    torch.testing.assert_close(routing.weights.sum(-1), torch.ones(len(x), dtype=torch.float64))
    assert routing.logits is x


@quick
@given(logits(), st.booleans())
def test_top_k_of_all_experts_is_soft(x, renormalise):
    every = Selection(kind="top_k", k=x.shape[1], renormalise=renormalise)(x).weights
    torch.testing.assert_close(every, Selection(kind="soft")(x).weights, rtol=1e-12, atol=1e-15)


@quick
@given(logits(), st.data())
def test_top_k_keeps_the_k_most_probable(x, data):
    k = data.draw(st.integers(1, x.shape[1]))
    kept = Selection(kind="top_k", k=k, renormalise=False)(x).weights
    scaled = Selection(kind="top_k", k=k)(x).weights
    for row, some, whole in zip(x.tolist(), kept.tolist(), scaled.tolist(), strict=True):
        expected = probabilities(row)
        largest = sorted(expected, reverse=True)[:k]
        assert sorted((w for w in some if w), reverse=True) == pytest.approx([p for p in largest if p])
        assert all(weight in (0, pytest.approx(p)) for weight, p in zip(some, expected, strict=True))
        assert whole == pytest.approx([weight / sum(some) for weight in some])
        assert sum(whole) == pytest.approx(1.0)


def test_a_renormalised_top_1_is_one_hot_and_gives_the_router_no_gradient():
    x = torch.tensor([[0.3, 1.7, -2.0], [5.0, 0, 0]], dtype=torch.float64, requires_grad=True)
    weights = Selection(kind="top_1")(x).weights
    assert weights.tolist() == [[0, 1, 0], [1, 0, 0]]
    (weights * torch.tensor([1.0, -2.0, 3.0])).sum().backward()
    assert x.grad.abs().max() < 1e-12


def test_a_top_1_that_is_not_renormalised_carries_its_probability_and_a_gradient():
    x = torch.tensor([[0.3, 1.7, -2.0]], dtype=torch.float64, requires_grad=True)
    weights = Selection(kind="top_1", renormalise=False)(x).weights
    p = probabilities(x[0].tolist())
    assert weights[0].tolist() == pytest.approx([0, p[1], 0])
    weights.sum().backward()
    assert x.grad[0].tolist() == pytest.approx([-p[1] * p[0], p[1] * (1 - p[1]), -p[1] * p[2]])


@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize(("kind", "k"), [("soft", None), ("top_1", None), ("top_k", 2), ("top_k", 3)])
def test_a_row_in_which_no_expert_speaks_up_abstains(kind, k, renormalise):
    x = torch.tensor([[SILENT, SILENT, SILENT], [1.0, 2.0, SILENT]], requires_grad=True)
    routing = Selection(kind=kind, k=k, renormalise=renormalise)(x)
    assert routing.weights[0].tolist() == [0, 0, 0]
    assert routing.best.tolist() == [-1, 1]
    assert routing.weights[1, 2] == 0, "an expert that is ruled out gets nothing"
    assert routing.weights[1].sum() > 0.7
    routing.weights[:, 1].sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("settings", [{"kind": "top_k"}, {"kind": "soft", "k": 2}, {"k": 1}, {"kind": "top_k", "k": 0}])
def test_k_goes_with_top_k_only_and_is_positive(settings):
    with pytest.raises(RecipeError, match="^k: "):
        Selection(**settings)


def test_more_experts_than_there_are_cannot_be_chosen():
    with pytest.raises(RecipeError, match="expected <= 3; got 4"):
        Selection(kind="top_k", k=4)(torch.zeros(2, 3))


def test_experts_with_equally_many_words_share_evenly_and_the_first_of_them_answers_alone():
    router = KeywordRouter([["owl"], ["add"], ["sum"]])
    texts = ["add the sum", "an owl and a sum", "add, owl, sum", "sum sum add add owl"]
    tied = [[0, 1, 1], [1, 0, 1], [1, 1, 1], [1, 2, 2]]
    logits = router(texts)
    assert logits.tolist() == tied
    first = [[0, 1, 0], [1, 0, 0], [1, 0, 0], [0, 1, 0]]
    assert Selection(kind="top_1")(logits).weights.tolist() == first
    assert [Selection(kind="top_1")(router([text])).weights[0].tolist() for text in texts] == first, "alone as together"
    soft = Selection(kind="soft")(logits).weights
    for row, counts in zip(soft.tolist(), tied, strict=True):
        assert row == pytest.approx(probabilities([float(count) for count in counts]))
        assert len({share for share, count in zip(row, counts, strict=True) if count == max(counts)}) == 1
