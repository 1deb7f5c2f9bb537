"""Are both forms of gated blocks the sum that their formula says, gradients too?"""

import pytest
import torch
from torch.nn import functional as F

from moesaic.ops import glu

F64 = torch.float64


def operands(e: int = 3) -> list[torch.Tensor]:
    torch.manual_seed(0)
    stacks = [torch.randn(e, 7, 5, dtype=F64, requires_grad=True) for _ in range(3)]
    return [torch.randn(4, 2, 5, dtype=F64), *stacks, torch.rand(4, e, dtype=F64).requires_grad_()]


def naive(x, gate, up, down, weights):
    """Token by token and expert by expert."""
    rows = []
    for n in range(x.shape[0]):
        for token in x[n]:
            each = [down[e].t() @ (F.silu(gate[e] @ token) * (up[e] @ token)) for e in range(len(gate))]
            rows.append(sum(weights[n, e] * y for e, y in enumerate(each)))
    return torch.stack(rows).view_as(x)


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_side_by_side_equals_a_loop_over_tokens_and_experts_with_gradients():
    x, *stacks, weights = operands()
    found, expected = glu.blended(x, *stacks, F.silu, weights), naive(x, *stacks, weights)
    close(found, expected)
    probe = torch.randn(found.shape, dtype=F64)
    for one, other in zip(
        torch.autograd.grad((found * probe).sum(), [*stacks, weights]),
        torch.autograd.grad((expected * probe).sum(), [*stacks, weights]),
        strict=True,
    ):
        close(one, other)


def test_one_block_for_all_rows_equals_the_loop():
    x, *stacks, weights = operands(1)
    close(glu.block(x, *(stack[0] for stack in stacks), F.silu, weights[:, 0]), naive(x, *stacks, weights))


def test_all_experts_together_are_one_product_for_each_projection(monkeypatch):
    x, *stacks, weights = (part.detach() for part in operands())
    sizes, linear = [], F.linear
    monkeypatch.setattr(F, "linear", lambda x, w: sizes.append(w.shape) or linear(x, w))
    glu.blended(x, *stacks, F.silu, weights)
    assert sizes == [(3 * 7, 5)] * 2
    assert stacks[0].flatten(0, 1).data_ptr() == stacks[0].data_ptr(), "without a copy"


@pytest.mark.parametrize("form", ["block", "blended"])
def test_a_weight_of_0_leaves_nothing(form):
    x, *stacks, _ = operands(1)
    weights = torch.zeros(4, 1, dtype=F64)
    given = (*stacks, F.silu, weights) if form == "blended" else (*(s[0] for s in stacks), F.silu, weights[:, 0])
    assert not getattr(glu, form)(x, *given).any()
