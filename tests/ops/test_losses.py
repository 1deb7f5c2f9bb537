"""Do the losses give the numbers that their formulas give by hand?"""

import math

import pytest
import torch
from torch import nn

from moesaic.nn import Linear
from moesaic.ops import losses
from moesaic.ops.losses import UNSCORED, Targets, load_balancing, router_z, summed_nll, token_nll
from moesaic.testing import tiny_decoder


def test_token_nll_of_known_probabilities():
    logits = torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]], [[0.125, 0.5, 0.375], [0.9, 0.05, 0.05]]]).log()
    found = token_nll(logits + 3.0, torch.tensor([[0, 2], [0, UNSCORED]]))  # a constant changes no distribution
    expected = torch.tensor([[math.log(2), -math.log(0.7)], [math.log(8), 0.0]])
    torch.testing.assert_close(found, expected)
    assert found[1, 1] == 0


def test_an_unscored_target_carries_no_gradient():
    logits = torch.randn(1, 3, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    token_nll(logits, torch.tensor([[1, UNSCORED, 4]])).sum().backward()
    assert not logits.grad[0, 1].any()
    expected = logits.detach().softmax(-1)
    expected[0, 0, 1] -= 1
    expected[0, 2, 4] -= 1
    expected[0, 1] = 0
    torch.testing.assert_close(logits.grad, expected)


def test_perplexity_is_of_the_token_that_follows():
    """A model that gives the successor of each token 0.8 has perplexity 1.25 on a text that counts."""
    ids = torch.tensor([[3, 4, 5, 6, 7], [0, 1, 2, 3, 4]])
    wrong = math.log(0.2 / 9)
    logits = torch.full((2, 5, 10), wrong)
    logits.scatter_(2, (ids + 1)[..., None], math.log(0.8))
    nll = token_nll(logits[:, :-1], ids[:, 1:])
    assert nll.mean().exp().item() == pytest.approx(1 / 0.8, rel=1e-6)
    assert token_nll(logits, ids).mean().item() == pytest.approx(-wrong, rel=1e-6), "unshifted it is another number"


def test_half_precision_logits_are_scored_in_float32_and_doubles_stay_doubles():
    logits = torch.tensor([[[10.0, 0.0, -7.0]]], dtype=torch.bfloat16)
    found = token_nll(logits, torch.tensor([[1]]))
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(10 + math.log1p(math.exp(-10) + math.exp(-17)), rel=1e-6)
    third = torch.tensor([[[1 / 3, 0.0]]], dtype=torch.float64)
    assert token_nll(third, torch.tensor([[1]])).item() == pytest.approx(math.log1p(math.exp(1 / 3)), rel=1e-14)


class Capped(nn.Module):
    """A head with a bias and a soft cap, by other operations than a product."""

    def __init__(self, vocab: int, width: int):
        super().__init__()
        self.inner = nn.Linear(width, vocab, bias=True)

    def forward(self, x: torch.Tensor, gates: None) -> torch.Tensor:
        return 3.0 * torch.tanh(self.inner(x) / 3.0)


HEADS = {"plain": lambda: Linear(8, 37), "biased": lambda: Linear(8, 37, bias=True), "capped": lambda: Capped(37, 8)}


def made(name: str) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    head = HEADS[name]().double()
    for weight in head.parameters():
        nn.init.normal_(weight, generator=generator)
    states = torch.randn(4, 9, 8, generator=generator, dtype=torch.float64)
    targets = torch.randint(37, (4, 9), generator=generator)
    return head, states, targets.masked_fill(torch.rand(4, 9, generator=generator) < 0.4, UNSCORED)


@pytest.mark.parametrize("size", [1, 5, 1000])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", HEADS)
def test_chunks_give_the_loss_and_the_gradients_of_all_logits_at_once(name, frozen, size, monkeypatch):
    monkeypatch.setattr(losses, "CHUNK", size * 37)
    head, states, targets = made(name)
    head.requires_grad_(not frozen)
    both = []
    for chunked in (False, True):
        x = states.clone().requires_grad_()
        if chunked:
            total, rows = summed_nll(head, 37, x, Targets.of(targets))
            assert not rows.requires_grad
        else:
            rows = token_nll(head(x, None), targets).sum(1)
            total = rows.sum()
        (0.25 * total).backward()
        both.append([total.detach(), rows.detach(), x.grad, *(weight.grad for weight in head.parameters())])
        head.zero_grad(set_to_none=True)
    for plain, own in zip(*both, strict=True):
        assert (own is None) == (plain is None)
        if plain is not None:
            torch.testing.assert_close(own, plain, rtol=1e-12, atol=1e-12)
    assert (both[1][3] is None) == frozen, "no gradient is made of frozen weights"


def test_a_tied_head_adds_its_gradient_to_that_of_the_embedding():
    ids = torch.randint(61, (2, 12), generator=torch.Generator().manual_seed(1))
    both = []
    for chunked in (False, True):
        decoder = tiny_decoder(tie_embeddings=True)
        given = {"targets": Targets.of(ids[:, 1:])} if chunked else {}
        out = decoder(ids[:, :-1], **given)
        (out.nats if chunked else token_nll(out.logits, ids[:, 1:]).sum()).backward()
        both.append({name: weight.grad for name, weight in decoder.named_parameters()})
    assert "lm_head.weight" not in both[0]
    for name, grad in both[0].items():
        torch.testing.assert_close(both[1][name], grad, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("learning", [False, True])
def test_logits_exist_at_scored_positions_only_and_one_chunk_of_them_at_a_time(learning, monkeypatch):
    monkeypatch.setattr(losses, "CHUNK", 5 * 37)
    head, states, targets = made("plain")
    seen = []
    head.register_forward_hook(lambda module, args, out: seen.append(out.shape[-2]))
    with torch.set_grad_enabled(learning):
        summed_nll(head, 37, states.requires_grad_(learning), Targets.of(targets))
    assert max(seen) <= 5 and sum(seen) == (targets != UNSCORED).sum()


def test_a_batch_without_a_scored_target_costs_nothing():
    head, states, targets = made("plain")
    total, rows = summed_nll(head, 37, states.requires_grad_(), Targets.of(torch.full_like(targets, UNSCORED)))
    total.backward()
    assert (total.item(), rows.tolist()) == (0.0, [0.0] * 4) and not states.grad.any()


@pytest.mark.parametrize("experts", [2, 3, 5])
def test_load_balancing_is_1_when_balanced_and_e_when_collapsed(experts):
    balanced = 50.0 * torch.eye(experts, dtype=torch.float64).repeat(4, 1)
    collapsed = torch.zeros(8, experts, dtype=torch.float64)
    collapsed[:, 1] = 50.0
    assert load_balancing(balanced).item() == pytest.approx(1.0, abs=1e-12)
    assert load_balancing(collapsed).item() == pytest.approx(experts, abs=1e-12)


def test_load_balancing_by_hand_and_downhill_towards_balance():
    """Three rows of four prefer expert 0: 2 x (3/4 x mean p0 + 1/4 x mean p1)."""
    logits = torch.tensor([[2.0, 0], [1.0, 0], [0.5, 0], [0, 1.0]], dtype=torch.float64, requires_grad=True)
    first = [1 / (1 + math.exp(-margin)) for margin in (2.0, 1.0, 0.5, -1.0)]
    mean = sum(first) / 4
    loss = load_balancing(logits)
    assert loss.item() == pytest.approx(2 * (0.75 * mean + 0.25 * (1 - mean)), rel=1e-12)
    loss.backward()
    assert (logits.grad[:, 0] > 0).all() and (logits.grad[:, 1] < 0).all(), "descent moves weight to the idle expert"


def test_router_z_by_hand():
    logits = torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, -1.0]], dtype=torch.float64)
    second = math.log(math.exp(1) + math.exp(2) + math.exp(-1))
    assert router_z(logits).item() == pytest.approx((math.log(3) ** 2 + second**2) / 2, rel=1e-12)
