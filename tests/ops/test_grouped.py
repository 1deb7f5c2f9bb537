"""Do products of rows sorted by expert equal a loop, gradients too, whatever the sizes, the type and who has no row?"""

import pytest
import torch

from moesaic.ops.grouped import fits, grouped, one_by_one, together

COUNTS = [[3, 0, 5, 0, 1], [0, 0, 9, 0, 0], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0], [1, 1, 1, 1, 1], [7, 2, 0, 0, 0]]


def case(counts: list[int], i: int, o: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(sum(counts) + i)
    x = torch.randn(sum(counts), i, generator=generator, dtype=dtype, requires_grad=True)
    weight = torch.randn(5, o, i, generator=generator, dtype=dtype, requires_grad=True)
    return x, weight, torch.tensor(counts).cumsum(0).int()


def naive(x: torch.Tensor, weight: torch.Tensor, counts: list[int]) -> torch.Tensor:
    owners = torch.arange(5).repeat_interleave(torch.tensor(counts))
    return torch.stack([weight[e] @ row for e, row in zip(owners, x, strict=True)]) if len(x) else x @ weight[0].T


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize(("i", "o"), [(8, 12), (7, 12), (8, 5), (1, 1), (16, 8)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_equals_a_loop_over_rows_and_so_do_its_gradients(counts, i, o, dtype) -> None:
    x, weight, ends = case(counts, i, o, dtype)
    found, expected = grouped(x, weight, ends), naive(x, weight, counts)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    for gradient in (torch.ones(()).to(dtype).expand(len(x), o), torch.randn(o, len(x), dtype=dtype).t()):
        ours = torch.autograd.grad(found, (x, weight), gradient, retain_graph=True)
        theirs = torch.autograd.grad(
            expected, (x, weight), gradient, retain_graph=True, materialize_grads=True, allow_unused=True
        )
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_16_bits_it_equals_one_product_for_each_expert(dtype) -> None:
    x, weight, ends = case([3, 0, 5, 0, 1], 16, 8, dtype)
    assert fits(x, weight) and not fits(x[:, :12], weight[:, :, :12])
    torch.testing.assert_close(together(x, weight, ends), one_by_one(x, weight, ends), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("i", "o", "dtype", "good"),
    [
        (8, 12, torch.float32, True),
        (8, 12, torch.float64, False),
        (7, 12, torch.float32, False),
        (8, 5, torch.float32, False),
        (8, 12, torch.bfloat16, False),
    ],
)
def test_what_torch_refuses_to_group_is_known_before(i, o, dtype, good) -> None:
    x, weight, ends = case([3, 0, 5, 0, 1], i, o, dtype)
    assert fits(x, weight) == good
    if not good:
        with pytest.raises((RuntimeError, ValueError)):
            together(x, weight, ends).square().sum().backward()
