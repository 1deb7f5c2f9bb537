"""Do token states know whose they are, whatever padded them, and pool as a loop over prompts would?"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moesaic.errors import RecipeError
from moesaic.routing import States
from moesaic.routing.states import joined, means_of, picked, vectors_of

sizes = st.lists(st.integers(1, 5), min_size=1, max_size=6)


def some(lengths: list[int], width: int = 3, seed: int = 0) -> tuple[States, list[torch.Tensor]]:
    """States of prompts of these lengths, and each prompt's by itself."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randn(length, width, generator=generator, dtype=torch.float64) for length in lengths]
    return States(torch.cat(rows), torch.tensor(lengths)), rows


@given(sizes, st.integers(0, 3))
def test_padding_is_gone_whatever_is_in_it(lengths, more):
    states, rows = some(lengths)
    padded = torch.full((len(rows), max(lengths) + more, 3), float("nan"), dtype=torch.float64)
    for place, row in enumerate(rows):
        padded[place, : len(row)] = row
    found = States.of(padded, torch.tensor(lengths))
    assert found.values.equal(states.values) and found.lengths.equal(states.lengths)


@given(sizes, st.data())
def test_prompts_are_chosen_in_any_order_and_joined_again(lengths, data):
    states, rows = some(lengths)
    order = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=8))
    found = states[torch.tensor(order)]
    assert found.values.equal(torch.cat([rows[place] for place in order])) and len(found) == len(order)
    cut = data.draw(st.integers(1, len(rows)))
    if cut < len(rows):
        again = States.cat([states[:cut], states[cut:]])
        assert again.values.equal(states.values) and again.lengths.equal(states.lengths)
    assert states[torch.ones(len(rows), dtype=torch.bool)].values.equal(states.values)


@given(sizes)
def test_means_and_shares_are_those_of_each_prompt_alone(lengths):
    states, rows = some(lengths)
    torch.testing.assert_close(states.mean(), torch.stack([row.mean(0) for row in rows]), rtol=1e-12, atol=1e-12)
    expected = torch.cat([row.softmax(0) for row in rows])
    torch.testing.assert_close(states.shares(states.values), expected, rtol=1e-12, atol=1e-12)


def test_shares_of_scores_as_large_as_they_get_are_finite_and_so_is_their_gradient():
    scores = torch.tensor([[1e4], [-1e4], [3e4]], dtype=torch.float64, requires_grad=True)
    shares = States(scores.detach(), torch.tensor([2, 1])).shares(scores)
    assert shares.flatten().tolist() == pytest.approx([1.0, 0.0, 1.0])
    shares.sum().backward()
    assert torch.isfinite(scores.grad).all()


def test_the_gradient_of_shares_is_the_softmaxs():
    states, _ = some([3, 1, 2], 2)
    scores = states.values.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: States(x, states.lengths).shares(x), (scores,))


def test_vectors_states_and_texts_answer_the_same_questions():
    states, rows = some([2, 1, 3])
    vectors, texts, order = torch.stack([row.mean(0) for row in rows]), ["a", "b", "c"], torch.tensor([2, 0])

    assert joined([vectors[:1], vectors[1:]]).equal(vectors) and joined([["a"], ["b", "c"]]) == texts
    again = joined([states[:1], states[1:]])
    assert again.values.equal(states.values) and again.lengths.equal(states.lengths)

    assert picked(vectors, order).equal(vectors[order]) and picked(texts, order) == ["c", "a"]
    assert picked(states, order).values.equal(torch.cat([rows[2], rows[0]]))

    assert means_of(vectors) is vectors and means_of(texts) is None
    torch.testing.assert_close(means_of(states), vectors)
    assert vectors_of(vectors) is vectors and vectors_of(states) is states.values
    with pytest.raises(RecipeError, match="feature: texts have no vectors"):
        vectors_of(texts)
