"""Do the three low-rank forms equal a loop over rows, tokens and experts, in value and in every gradient?"""

import pytest
import torch
from torch import Tensor

from moesaic.ops import low_rank

# Expert 2 has no row; row 1 abstains; row 3 uses two experts.
WEIGHTS = [[0.5, 0, 0, 0], [0, 0, 0, 0], [0, 1.5, 0, 0], [0.25, 0, 0, 0.75], [0, 0, 0, 1.0]]


def inputs(tokens: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    sizes = ((5, tokens, 7), (4, 2, 7), (4, 2, 6))
    x, a, b = (torch.randn(size, generator=generator, dtype=torch.float64, requires_grad=True) for size in sizes)
    return x, a, b, torch.tensor(WEIGHTS, dtype=torch.float64, requires_grad=True)


def naive(x: Tensor, a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    """One vector at a time, as the formula stands."""
    rows = []
    for row, some in zip(x, weights, strict=True):
        tokens = []
        for token in row:
            y = torch.zeros(b.shape[2], dtype=x.dtype)
            for expert, weight in enumerate(some):
                y = y + weight * (b[expert].t() @ (a[expert] @ token))
            tokens.append(y)
        rows.append(torch.stack(tokens))
    return torch.stack(rows)


def nothing(x: Tensor) -> Tensor:
    """What the forms add onto: here zeros, so that what they return is the sum alone."""
    return torch.zeros(*x.shape[:2], 6, dtype=x.dtype)


def pairs(weights: Tensor, reverse: bool = False) -> tuple[Tensor, Tensor]:
    found = [(row, e) for row in range(weights.shape[0]) for e in range(weights.shape[1]) if weights[row, e] != 0]
    rows, experts = zip(*(found[::-1] if reverse else found), strict=True)
    return torch.tensor(rows), torch.tensor(experts)


def check(found: Tensor, expected: Tensor, leaves: list[Tensor], where: Tensor | None = None) -> None:
    """Equal values and equal gradients of a loss that weighs every output differently."""
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    loss = torch.linspace(-1, 2, found.numel(), dtype=found.dtype).view_as(found)
    ours = torch.autograd.grad((found * loss).sum(), leaves)
    theirs = list(torch.autograd.grad((expected * loss).sum(), leaves))
    if where is not None:  # a weight that no pair stands for has no gradient
        theirs[-1] = theirs[-1] * where
    for one, other in zip(ours, theirs, strict=True):
        assert one.abs().sum() > 0
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tokens", [1, 3])
def test_masked_equals_the_naive_loop_with_gradients(tokens):
    x, a, b, weights = inputs(tokens)
    check(low_rank.masked(nothing(x), x, a, b, weights), naive(x, a, b, weights), [x, a, b, weights])


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("reverse", [False, True], ids=["in order", "any order"])
def test_gathered_equals_the_naive_loop_with_gradients(tokens, reverse):
    x, a, b, weights = inputs(tokens)
    rows, experts = pairs(weights, reverse)
    found = low_rank.gathered(nothing(x), x, a, b, rows, experts, weights[rows, experts])
    check(found, naive(x, a, b, weights), [x, a, b, weights], where=weights.detach() != 0)


@pytest.mark.parametrize("expert", [0, 3])
def test_single_equals_the_naive_loop_with_gradients(expert):
    x, a, b, weights = inputs()
    alone = torch.zeros_like(weights)
    alone[:, expert] = 1.0
    found = low_rank.single(nothing(x), x, a[expert], b[expert], weights[:, expert])
    check(found, naive(x, a, b, weights * alone), [x, a, b, weights])


def test_a_pair_given_twice_counts_twice():
    x, a, b, _ = inputs()
    twice = torch.zeros(5, 4, dtype=torch.float64)
    twice[2, 1] = 0.25 + 0.5
    values = torch.tensor([0.25, 0.5], dtype=torch.float64)
    found = low_rank.gathered(nothing(x), x, a, b, torch.tensor([2, 2]), torch.tensor([1, 1]), values)
    torch.testing.assert_close(found, naive(x, a, b, twice), rtol=1e-12, atol=1e-12)


def test_rows_that_abstain_get_exactly_nothing():
    x, a, b, weights = inputs()
    rows, experts = pairs(weights)
    none = torch.zeros(0, dtype=torch.long)
    assert not low_rank.masked(nothing(x), x, a, b, weights)[1].any()
    assert not low_rank.gathered(nothing(x), x, a, b, rows, experts, weights[rows, experts])[1].any()
    assert not low_rank.single(nothing(x), x, a[0], b[0], weights[:, 0])[1].any()
    assert low_rank.gathered(nothing(x), x, a, b, none, none, weights[none, none]).equal(
        torch.zeros(5, 3, 6, dtype=torch.float64)
    )


def test_an_expert_without_rows_gets_no_gradient():
    x, a, b, weights = inputs()
    rows, experts = pairs(weights)
    for found in (
        low_rank.masked(nothing(x), x, a, b, weights),
        low_rank.gathered(nothing(x), x, a, b, rows, experts, weights[rows, experts]),
    ):
        for grad in torch.autograd.grad(found.sum(), [a, b]):
            assert not grad[2].any() and all(grad[e].any() for e in (0, 1, 3))


@pytest.mark.parametrize("tokens", [1, 3])
def test_one_expert_a_row_equals_the_naive_loop_with_gradients(tokens):
    x, a, b, _ = inputs(tokens)
    experts, values = torch.tensor([3, 0, 3, 1, 2]), torch.tensor([0.5, 1.0, 2.0, 1.5, 0.25], dtype=torch.float64)
    values.requires_grad_()
    weights = torch.zeros(5, 4, dtype=torch.float64).scatter(1, experts[:, None], values[:, None])
    check(low_rank.each(nothing(x), x, a, b, experts, values), naive(x, a, b, weights), [x, a, b, values])


def test_every_form_adds_onto_what_stands():
    x, a, b, weights = inputs()
    y = torch.randn(5, 3, 6, dtype=torch.float64)
    rows, experts = pairs(weights)
    one = torch.tensor([1, 0, 3, 2, 1])
    for form, arguments in (
        (low_rank.single, (a[1], b[1], weights[:, 1])),
        (low_rank.masked, (a, b, weights)),
        (low_rank.each, (a, b, one, weights[:, 0])),
        (low_rank.gathered, (a, b, rows, experts, weights[rows, experts])),
    ):
        torch.testing.assert_close(form(y, x, *arguments), y + form(nothing(x), x, *arguments))
