"""Is the loss of language modelling the mean over scored tokens, whatever batches and padding they stand in?"""

import math

import pytest
import torch

from moesaic.adapters import attach
from moesaic.data.batches import Tokens, pad
from moesaic.kinds.gates import plain
from moesaic.routing import Gates
from moesaic.testing import tiny_decoder, toy_expert
from moesaic.train.language import loss_of, mean_nats

ROWS = [
    Tokens([5, 17, 3, 8, 60, 2], 2, "a"),
    Tokens([9, 4], 1, "b"),
    Tokens([4, 4, 31, 7, 7, 12, 50, 1, 9], 6, "c"),
    Tokens([1, 2, 3], 2, "d"),
]


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@torch.no_grad()
def naive(decoder, gates, first=None) -> tuple[float, int]:
    """One row at a time, one token at a time: the nats of token i from the logits after token i - 1."""
    nats, count = 0.0, 0
    for row in ROWS:
        logits = decoder(torch.tensor([row.ids]), None, gates(1)).logits[0]
        for i in range(row.prompt if first is None else first, len(row.ids)):
            powers = logits[i - 1].exp()
            nats -= math.log(powers[row.ids[i]] / powers.sum())
            count += 1
    return nats, count


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("score_prompt", [False, True])
def test_mean_nats_is_over_tokens_of_all_rows_and_prompts_count_only_on_request(batch, score_prompt):
    decoder = tiny_decoder()
    nats, count = naive(decoder, plain, 1 if score_prompt else None)
    assert count == (16 if score_prompt else 9)
    assert mean_nats(decoder, plain, ROWS, batch, score_prompt) == pytest.approx(nats / count, rel=1e-12)


def test_the_loss_is_a_sum_and_says_of_how_many():
    decoder = tiny_decoder()
    summed, count = loss_of(decoder, plain)(pad(ROWS))
    assert (summed.item(), count) == (pytest.approx(naive(decoder, plain)[0], rel=1e-12), 9)
    assert summed.requires_grad


def test_the_gates_given_are_the_gates_used():
    decoder = tiny_decoder()
    attach(decoder, [toy_expert(tiny_decoder(), 1), toy_expert(tiny_decoder(), 2)])
    found = []
    for expert in (-1, 0, 1):

        def gates(rows: int, expert: int = expert) -> Gates:
            return Gates.one(expert, rows, 2, torch.zeros(1))

        nats, count = naive(decoder, gates)
        found.append(mean_nats(decoder, gates, ROWS, 3))
        assert found[-1] == pytest.approx(nats / count, rel=1e-12)
    assert found[0] == pytest.approx(mean_nats(tiny_decoder(), plain, ROWS, 3), rel=1e-12)
    assert len({round(value, 6) for value in found}) == 3


def test_prompt_tokens_carry_no_gradient():
    """The head's own input at unscored places gets none."""
    decoder = tiny_decoder(num_layers=1)
    states = []
    decoder.norm.register_forward_hook(lambda module, args, out: states.append(out) or out.retain_grad())
    summed, _ = loss_of(decoder, plain)(pad(ROWS[:1]))
    summed.backward()
    assert [bool(grad.any()) for grad in states[0].grad[0]] == [False, True, True, True, True]
