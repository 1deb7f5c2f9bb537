"""Property: gradients reach the rows' weights of their experts through every form of the low-rank product."""

import pytest
import torch
from torch import Tensor

from moesaic.adapters import attach, feedforward
from moesaic.adapters.lora import LowRankLinear
from moesaic.nn import Linear
from moesaic.ops import low_rank
from moesaic.routing import Gates
from moesaic.testing import tiny_decoder, toy_expert, toy_ffn

N, T, I, O, E, R = 4, 2, 5, 6, 3, 2  # noqa: E741


pytestmark = pytest.mark.usefixtures("double")


def slot() -> LowRankLinear:
    base = Linear(I, O)
    torch.nn.init.normal_(base.weight)
    return LowRankLinear(base, torch.randn(E, R, I), torch.randn(E, R, O), torch.tensor([0.5, 2.0, 1.0]))


def loop(layer: LowRankLinear, x: Tensor, weights: Tensor) -> Tensor:
    """Every expert for every row, one at a time."""
    rows = []
    for n in range(len(x)):
        y = x[n] @ layer.base.weight.t()
        for e in range(E):
            y = y + weights[n, e] * layer.scale[e] * (x[n] @ layer.a[e].t()) @ layer.b[e]
        rows.append(y)
    return torch.stack(rows)


WEIGHTS = {
    "single": torch.tensor([[0.0, 0.7, 0], [0, 1.0, 0], [0, 0.2, 0], [0, 1.0, 0]]),
    "masked": torch.tensor([[0.2, 0.3, 0.5], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4], [0.6, 0.2, 0.2]]),
    "each": torch.tensor([[0.0, 0.7, 0], [1.0, 0, 0], [0, 0, 0.2], [0, 1.0, 0]]),
    "gathered": torch.tensor([[0.3, 0.7, 0], [1.0, 0, 0], [0, 0, 0], [0.1, 0, 0.9]]),
}


@pytest.mark.parametrize("form", WEIGHTS)
@pytest.mark.parametrize("dense", [False, True])
def test_weights_get_the_gradients_of_a_dense_loop(form, dense, monkeypatch):
    """Of gates of the chosen alone, those of the chosen: nothing at all reaches an expert that was not computed."""
    called = []
    for name in WEIGHTS:
        plain = getattr(low_rank, name)
        monkeypatch.setattr(low_rank, name, lambda *args, n=name, f=plain: called.append(n) or f(*args))
    layer, x, target = slot(), torch.randn(N, T, I), torch.randn(N, T, O)
    weights, theirs = (WEIGHTS[form].clone().requires_grad_() for _ in range(2))
    y = layer(x, Gates.dense(weights) if dense else Gates.of(weights))
    assert called == ["masked" if dense else form]
    (y * target).sum().backward()
    expected = loop(layer, x, theirs)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    (expected * target).sum().backward()
    reached = theirs.grad if dense else theirs.grad * (WEIGHTS[form] != 0)
    torch.testing.assert_close(weights.grad, reached, rtol=1e-12, atol=1e-12)


def test_through_a_whole_decoder_the_gradient_is_the_slope_that_differences_show():
    decoder, plain = tiny_decoder(), tiny_decoder()
    attach(decoder, [toy_expert(plain, 1), toy_expert(plain, 2)])
    decoder.requires_grad_(False)
    ids, target = torch.randint(61, (3, 5)), torch.randn(3, 5, 61)

    def value(weights: Tensor) -> Tensor:
        return (decoder(ids, None, Gates.dense(weights)).logits * target).sum()

    weights = torch.tensor([[1.0, 0], [0, 1.0], [0.5, 0.5]], requires_grad=True)
    (found,) = torch.autograd.grad(value(weights), weights)
    for row in range(3):
        for expert in range(2):
            step = torch.zeros_like(weights)
            step[row, expert] = 1e-6
            slope = (value(weights.detach() + step) - value(weights.detach() - step)) / 2e-6
            assert found[row, expert].item() == pytest.approx(slope.item(), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("dense", [False, True])
def test_blocks_give_weights_the_gradients_of_a_loop_and_the_base_loses_what_they_gain(dense):
    """Where a row leaves the base nothing, its weights only move among the experts, and the base's share is no matter.

    Of gates of the chosen alone nothing but the base's loss reaches an expert that was not computed.
    """
    plain, decoder = tiny_decoder(), tiny_decoder()
    feedforward.attach(decoder, [toy_ffn(plain, 1), toy_ffn(plain, 2)])
    slot, x, target = decoder.layers[1].mlp, torch.randn(4, 3, 32), torch.randn(4, 3, 32)
    weights = torch.tensor([[1.0, 0], [0, 1.0], [0.5, 0.5], [0.3, 0.0]], requires_grad=True)
    gates = Gates.dense(weights) if dense else Gates.of(weights)
    (found,) = torch.autograd.grad((slot(x, gates)[0] * target).sum(), weights)
    one, two, base = ((slot(x, Gates.one(e, 4, 2, x))[0] * target).sum((1, 2)) for e in (0, 1, -1))
    computed = torch.ones(4, 2) if dense else (weights != 0).double()
    expected = computed * torch.stack([one, two], 1) - torch.tensor([0.0, 0, 0, 1])[:, None] * base[:, None]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
