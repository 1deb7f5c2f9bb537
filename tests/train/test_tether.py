"""Does a tether add exactly the divergence from the base, and keep an expert near it?"""

import pytest
import torch

from moesaic.adapters import attach
from moesaic.data.batches import Schedule, Tokens, pad
from moesaic.hardware import HOST
from moesaic.kinds.gates import alone
from moesaic.ops import losses
from moesaic.ops.losses import divergence
from moesaic.testing import tiny_decoder, toy_expert
from moesaic.train.language import loss_of
from moesaic.train.tether import EVERY, Tether

ROWS = [Tokens([1 + (7 * row + 11 * step) % 59 for step in range(4 + row % 5)], 1, "g") for row in range(12)]
BATCH = pad([Tokens([2 + row + step for step in range(6)], 1, "g") for row in range(3)], score_prompt=True)


def tether(weight: float = 0.5, fresh: bool = False):
    """A tether of an expert with random weights, or of one that changes nothing yet."""
    base, decoder = tiny_decoder(), tiny_decoder()
    decoder.load_state_dict(base.state_dict())
    expert = toy_expert(decoder, 3)
    if fresh:
        for _, b in expert.pairs.values():
            b.zero_()
    attach(decoder.requires_grad_(False), [expert])
    for name, parameter in decoder.named_parameters():
        parameter.requires_grad_(name.endswith((".a", ".b")))
    return Tether(decoder, alone, base, Schedule(ROWS, 2, 0), weight, HOST)


def naive(one: Tether, batch) -> torch.Tensor:
    """The mean over tokens of sum_v p log(p / q)."""
    real = batch.targets != losses.UNSCORED
    with torch.no_grad():
        known = one.base(batch.ids).logits[real].log_softmax(-1)
    found = one.decoder(batch.ids, None, one.gates(len(batch.ids))).logits[real].log_softmax(-1)
    return (known.exp() * (known - found)).sum(-1).mean()


def slopes(one: Tether, loss: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, [p for p in one.decoder.parameters() if p.requires_grad]))


@pytest.mark.parametrize("chunk", [1, 200, losses.CHUNK])
def test_it_is_the_divergence_and_so_are_its_slopes(chunk, monkeypatch):
    monkeypatch.setattr(losses, "CHUNK", chunk)
    one = tether()
    found, wanted = one.divergence(BATCH), naive(one, BATCH)
    torch.testing.assert_close(found, wanted)
    assert found > 1e-3
    for ours, theirs in zip(slopes(one, found), slopes(one, wanted), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_model_does_not_diverge_from_itself():
    decoder = tiny_decoder()
    states = torch.randn(5, decoder.config.hidden_size, dtype=decoder.norm.weight.dtype)
    assert divergence(decoder.lm_head, states, decoder.lm_head, states).abs() < 1e-12


def test_every_fourth_batch_comes_with_neutral_text_that_counts_four_times():
    one = tether()
    draw, loss = one.beside(lambda number: BATCH, loss_of(one.decoder, one.gates))
    own, count = loss_of(one.decoder, one.gates)(BATCH)
    for number in range(2 * EVERY):
        given = draw(number)
        found, counted = loss(given)
        assert counted == count and (given.neutral is None) == (number % EVERY < EVERY - 1)
        more = EVERY * one.weight * count * naive(one, given.neutral) if given.neutral else 0.0
        torch.testing.assert_close(found, own + more)
    assert not torch.equal(draw(EVERY - 1).neutral.ids, draw(2 * EVERY - 1).neutral.ids), "each turn has other rows"
    assert torch.equal(draw(EVERY - 1).neutral.ids, draw(EVERY - 1).neutral.ids)


def test_a_trained_expert_stays_nearer_to_its_base_and_learns_as_much():
    far, own = {}, {}
    for weight in (0.0, 1.0):
        one = tether(weight, fresh=True)
        rows = loss_of(one.decoder, one.gates)
        draw, loss = one.beside(lambda number: BATCH, rows)
        optimiser = torch.optim.Adam([p for p in one.decoder.parameters() if p.requires_grad], 1e-2)
        for number in range(60):
            total, count = loss(draw(number))
            optimiser.zero_grad()
            (total / count).backward()
            optimiser.step()
        far[weight] = one.divergence(pad(ROWS, score_prompt=True)).item()
        own[weight] = rows(BATCH)[0].item() / count
    assert far[1.0] < 0.4 * far[0.0], far
    assert own[1.0] < own[0.0] + 0.05, own
