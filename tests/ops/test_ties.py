"""Does TIES trim, elect a sign and average as its paper says?"""

import pytest
import torch

from moesaic.ops.ties import largest, ties


def test_the_largest_values_stay_and_the_others_are_0():
    change = torch.tensor([[0.1, -3.0, 2.0], [0.0, 0.5, -0.2]])
    assert largest(change, 1 / 3).tolist() == [[0.0, -3.0, 2.0], [0.0, 0.0, 0.0]]
    assert largest(change, 1.0).equal(change)


def test_the_mean_is_over_the_changes_that_agree_with_the_sign_of_the_sum():
    first, second = torch.tensor([4.0, 1.0, -2.0, 0.0]), torch.tensor([2.0, -3.0, 1.0, 0.0])
    assert ties([first, second], 1.0).tolist() == [3.0, -3.0, -2.0, 0.0]


@pytest.mark.parametrize("copies", [1, 3])
def test_copies_of_one_change_are_that_change(copies):
    change = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(ties([change] * copies, 1.0), change)
