"""Does exploration draw as its formulas say, with their gradients, and from nothing but the generator's state?"""

import math

import pytest
import torch
from torch.nn import functional as F

from moesaic.routing.exploration import gumbel_choice, noisy

LOGITS = torch.tensor([[1.0, 0.0, -1.0]], dtype=torch.float64)


def drawn(logits: torch.Tensor, temperature: float = 1.0, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return gumbel_choice(logits, temperature)


def test_gumbel_draws_each_expert_with_its_probability_whatever_the_temperature():
    many = LOGITS.expand(20_000, -1)
    found = drawn(many)
    assert found.sum(1).eq(1).all() and ((found == 0) | (found == 1)).all(), "exactly one expert, exactly whole"
    share, deviation = LOGITS.softmax(-1)[0], math.sqrt(0.25 / len(many))
    assert (found.mean(0) - share).abs().max() < 5 * deviation
    assert drawn(many, 0.1).equal(found) and drawn(many, 10.0).equal(found)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_gumbel_lends_the_gradient_of_the_perturbed_softmax_at_the_temperature(temperature):
    weights = torch.tensor([[0.3, -1.0, 2.0]], dtype=torch.float64)
    logits = LOGITS.clone().requires_grad_()
    (drawn(logits, temperature) * weights).sum().backward()
    torch.manual_seed(0)
    noise = -torch.empty_like(LOGITS).exponential_().log()
    plain = LOGITS.clone().requires_grad_()
    (((plain + noise) / temperature).softmax(-1) * weights).sum().backward()
    torch.testing.assert_close(logits.grad, plain.grad, rtol=1e-12, atol=1e-12)
    assert logits.grad.abs().min() > 0, "the gradient reaches the experts that were not drawn too"


def test_noise_is_normal_and_as_wide_as_the_softplus_of_the_spread():
    spread = torch.tensor([[-3.0, 0.0, 2.0]], dtype=torch.float64).expand(20_000, -1)
    torch.manual_seed(0)
    found = noisy(LOGITS.expand(20_000, -1), spread) - LOGITS
    wide = F.softplus(spread[0])
    assert (found.mean(0).abs() < 5 * wide / math.sqrt(20_000)).all()
    assert ((found.std(0) / wide - 1).abs() < 0.03).all()


def test_noise_by_its_formula_and_the_spread_learns():
    spread = torch.tensor([[0.2, -0.4, 1.0]], dtype=torch.float64, requires_grad=True)
    torch.manual_seed(3)
    found = noisy(LOGITS, spread)
    torch.manual_seed(3)
    draw = torch.randn_like(LOGITS)
    torch.testing.assert_close(found, LOGITS + draw * (1 + spread.exp()).log(), rtol=1e-12, atol=1e-12)
    found.sum().backward()
    torch.testing.assert_close(spread.grad, draw * torch.sigmoid(spread.detach()), rtol=1e-12, atol=1e-12)


def test_the_same_state_draws_the_same_and_another_another():
    many = LOGITS.expand(50, -1)
    assert drawn(many, seed=1).equal(drawn(many, seed=1)) and not drawn(many, seed=1).equal(drawn(many, seed=2))
