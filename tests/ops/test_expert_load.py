"""Is an even load 1, a collapsed one the worst, and is a bias led from collapse to balance?"""

import pytest
import torch

from moesaic.ops.expert_load import (
    balance_loss,
    choices,
    least_load,
    max_violation,
    thresholds,
    towards_equal,
    towards_thresholds,
)


def test_an_even_load_is_1_for_any_number_of_experts_and_a_collapsed_one_their_number() -> None:
    for experts, chosen in ((2, 1), (8, 2), (64, 8)):
        even = torch.full((640, experts), 1 / experts)
        counts = torch.full((experts,), 640 * chosen // experts)
        assert balance_loss(even, counts).item() == pytest.approx(1, abs=1e-6)
        assert (max_violation(counts), least_load(counts)) == (0, 1)
    one = torch.eye(8)[torch.zeros(100, dtype=torch.long)]
    assert balance_loss(one, choices(one)).item() == pytest.approx(8)
    assert (max_violation(choices(one)), least_load(choices(one))) == (7, 0)


def test_layers_that_collapse_onto_different_experts_do_not_hide_each_other() -> None:
    """Summed over layers before the product, as transformers does, the loss of these two is 1, the least."""
    layers = [torch.eye(2)[torch.full((50,), expert)] for expert in (0, 1)]
    assert [balance_loss(layer, choices(layer)).item() for layer in layers] == [2, 2]
    pooled = torch.cat(layers)
    assert balance_loss(pooled, choices(pooled)).item() == pytest.approx(1)


def test_the_sign_raises_who_has_too_few_by_the_rate_and_the_mean_stays() -> None:
    bias = towards_equal(torch.tensor([0.5, 0.0, -0.5]), torch.tensor([9, 2, 1]), 0.01)
    moved = bias - torch.tensor([0.5, 0.0, -0.5])
    assert moved.sum().item() == pytest.approx(0, abs=1e-7)
    torch.testing.assert_close(moved, torch.tensor([-0.04, 0.02, 0.02]) / 3)
    assert towards_equal(torch.zeros(3), torch.tensor([4, 4, 4]), 0.01).equal(torch.zeros(3))


def test_the_thresholds_of_a_balanced_batch_leave_it_as_it_is_and_those_of_a_collapsed_one_balance_it() -> None:
    scores = torch.randn(2048, 8, generator=torch.Generator().manual_seed(0)) + torch.tensor([4.0, 2] + [0] * 6)
    bias = torch.zeros(8)
    assert max_violation(chosen(scores, bias)) > 2.5
    for _ in range(20):
        bias = towards_thresholds(bias, thresholds(scores, bias, 2), 1.0)
    assert max_violation(chosen(scores, bias)) < 0.02
    assert bias.mean().item() == pytest.approx(0, abs=1e-6)


def chosen(scores: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return torch.bincount((scores + bias).topk(2).indices.flatten(), minlength=8)
