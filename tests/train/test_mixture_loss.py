"""Is the loss of the task the mixture's own, with its slopes in the weights, whether computed or looked up?"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from moesaic.adapters import attach
from moesaic.data.batches import Tokens
from moesaic.model.decoder import Decoder
from moesaic.routing import Gates, Selection
from moesaic.routing.exploration import gumbel_choice
from moesaic.testing import tiny_decoder, toy_expert
from moesaic.train import mixture_loss
from moesaic.train.mixture_loss import Table, computed, language

ROWS = [Tokens(ids, prompt, str(ids)) for ids, prompt in (([5, 9, 3, 1], 2), ([4, 8], 1), ([7] * 9, 3), ([2, 6, 1], 1))]
ALL = torch.arange(len(ROWS))
E = 3


@pytest.fixture(autouse=True, scope="module")
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    found, plain = tiny_decoder(), tiny_decoder()
    attach(found, [toy_expert(plain, seed) for seed in range(E)])
    return found.requires_grad_(False)


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def by_hand(decoder: Decoder, row: int, weights: torch.Tensor) -> torch.Tensor:
    """The nats of one row's response, its tokens one at a time, every expert computed."""
    one = ROWS[row]
    logits = decoder(torch.tensor([one.ids]), None, Gates.dense(weights[None])).logits[0]
    return -sum(logits[place - 1].log_softmax(-1)[one.ids[place]] for place in range(one.prompt, len(one.ids)))


@pytest.mark.parametrize("chunk", [1, 3, 16])
def test_a_rows_loss_is_of_its_response_alone_and_so_are_its_slopes(decoder, chunk, monkeypatch):
    monkeypatch.setattr(mixture_loss, "CHUNK", chunk)
    weights = torch.tensor([[0.2, 0.3, 0.5], [1.0, 0, 0], [0, 0.5, 0.5], [0.9, 0.1, 0]], requires_grad=True)
    theirs = weights.detach().clone().requires_grad_()
    order = torch.tensor([2, 0, 3, 1])
    lost, counts = computed(language(decoder, ROWS))(order, weights)
    expected = torch.stack([by_hand(decoder, row, theirs[place]) for place, row in enumerate(order.tolist())])
    close(lost, expected)
    assert counts.tolist() == [6, 2, 2, 1]
    pull = torch.tensor([1.0, -2.0, 0.5, 3.0])
    (lost * pull).sum().backward()
    (expected * pull).sum().backward()
    close(weights.grad, theirs.grad)
    assert weights.grad.abs().min() > 0, "an expert of weight 0 has its slope too"


def test_without_a_gradient_nobody_who_was_not_chosen_is_computed(decoder, monkeypatch):
    seen, forward = [], Decoder.forward
    monkeypatch.setattr(
        Decoder, "forward", lambda s, i, c, g, *rest: seen.append(g.present) or forward(s, i, c, g, *rest)
    )
    weights = torch.eye(E)[[1, 1, 2, 1]].requires_grad_()
    loss = computed(language(decoder, ROWS))
    with torch.no_grad():
        still, _ = loss(ALL, weights)
    assert seen == [(1, 2)]
    moving, _ = loss(ALL, weights)
    assert seen[1:] == [(0, 1, 2)] and not still.requires_grad and moving.requires_grad
    close(still, moving.detach())


@pytest.mark.parametrize("slopes", [False, True])
@settings(max_examples=20)
@given(data=st.data())
def test_a_table_says_of_whole_experts_what_is_computed(decoder, slopes, data):
    chosen = data.draw(st.lists(st.integers(0, E - 1), min_size=4, max_size=4))
    table = tables(decoder)[slopes]
    one, other = (torch.eye(E)[chosen].requires_grad_() for _ in range(2))
    lost, counts = table(ALL, one)
    expected, of = computed(language(decoder, ROWS))(ALL, other)
    close(lost, expected)
    assert counts.equal(of) and lost.requires_grad == slopes
    if slopes:
        lost.square().sum().backward()
        expected.square().sum().backward()
        close(one.grad, other.grad)


KEPT: list[Table] = []


def tables(decoder: Decoder) -> list[Table]:
    """Without slopes, and with them."""
    if not KEPT:
        told: list[int] = []
        KEPT.extend(Table.of(language(decoder, ROWS), 4, E, slopes, told.append) for slopes in (False, True))
        assert told == [4, 8, 12, 4, 8, 12]
    return KEPT


def test_a_table_in_pieces_is_the_table(decoder):
    for table in tables(decoder):
        again = Table.cat([table[:1], table[1:3], table[3:]])
        assert again.sums.equal(table.sums) and again.counts.equal(table.counts)
        assert (again.slopes is None) == (table.slopes is None)
        assert again.slopes is None or again.slopes.equal(table.slopes)


@pytest.mark.parametrize(
    ("selection", "gumbel", "teaches"),
    [
        (Selection(), False, False),
        (Selection(), True, True),
        (Selection(renormalise=False), False, True),
        (Selection(kind="top_k", k=1), False, False),
        (Selection(kind="top_k", k=2), False, True),
        (Selection(kind="soft"), False, True),
    ],
)
def test_a_renormalised_best_alone_gives_the_router_no_gradient_and_gumbel_does(decoder, selection, gumbel, teaches):
    torch.manual_seed(0)
    logits = torch.randn(4, E, requires_grad=True)
    weights = gumbel_choice(logits, 1.0) if gumbel else selection(logits).weights
    computed(language(decoder, ROWS))(ALL, weights)[0].sum().backward()
    largest = logits.grad.abs().max().item()
    assert largest > 1e-3 if teaches else largest < 1e-12


def test_steps_down_the_slopes_find_the_expert_that_answers_best(decoder):
    """Of soft weights, by plain gradient descent: each row ends at its best expert, or better, between some."""
    logits = torch.zeros(4, E, requires_grad=True)
    loss = computed(language(decoder, ROWS))
    alone = torch.stack([loss(ALL, F.one_hot(torch.full((4,), e), E).double())[0] for e in range(E)], 1)
    for _ in range(40):
        lost, _ = loss(ALL, logits.softmax(-1))
        (slope,) = torch.autograd.grad(lost.sum(), logits)
        logits = (logits - 0.5 * slope).detach().requires_grad_()
    assert (lost.detach() <= alone.min(1).values + 0.1).all()
