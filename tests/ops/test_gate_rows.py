"""Are the rows those of the formulas, and do they tell experts apart that a mean does not?"""

import pytest
import torch

from moesaic.ops.gate_rows import means, ridge, sharpened, unit


def states(*centres: list[float], count: int = 400, noise: float = 0.3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.tensor(centre) + noise * torch.randn(count, len(centre), generator=generator) for centre in centres]


def accuracy(rows: torch.Tensor, some: list[torch.Tensor]) -> float:
    right = [((one.double() @ rows.t()).argmax(-1) == index).double().mean() for index, one in enumerate(some)]
    return float(torch.stack(right).mean())


def test_means_by_hand():
    rows = means([torch.tensor([[3.0, 0.0], [3.0, 8.0]]), torch.tensor([[0.0, -2.0]])])
    assert rows.tolist() == [[0.6, 0.8], [0.0, -1.0]]
    assert unit(torch.zeros(1, 2)).tolist() == [[0.0, 0.0]]


def test_ridge_solves_its_equations_and_each_expert_weighs_the_same():
    some = [torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]])]
    rows = ridge(some, penalty=0.0)
    assert torch.allclose(rows @ torch.tensor([1.0, 0.0]).double(), torch.tensor([1.0, 0.0]).double())
    assert torch.allclose(rows @ torch.tensor([1.0, 1.0]).double(), torch.tensor([0.0, 1.0]).double())
    few, many = ridge(some), ridge([some[0], some[1].repeat(9, 1)])
    assert torch.allclose(few, many)


def test_ridge_tells_apart_what_a_large_common_noise_hides_from_the_means():
    common = 3 * torch.randn(400, 1, generator=torch.Generator().manual_seed(1))
    some = [one + common for one in states([1.0, 0.0], [-1.0, 0.0])]
    assert accuracy(ridge(some), some) > 0.95 > 0.8 > accuracy(means(some), some)


def test_sharpened_rows_choose_alike_and_are_surest_without_being_wrong():
    some = states([1.0, 0.0], [0.0, 1.0], noise=1.0)
    rows = ridge(some)
    sharp = sharpened(rows, some)
    factor = float((sharp / rows).mean())
    assert torch.allclose(sharp, rows * factor) and factor > 1

    def surprise(scale: float) -> float:
        told = [torch.log_softmax(one.double() @ rows.t() * scale, -1)[:, at].mean() for at, one in enumerate(some)]
        return -float(sum(told))

    assert surprise(factor) == pytest.approx(min(surprise(factor * one) for one in (0.8, 0.99, 1.0, 1.01, 1.25)))
