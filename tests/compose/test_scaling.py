"""Do shares follow from the sizes? Two processes are measured against them in tests/train/test_ranks.py."""

from dataclasses import replace

import pytest

from moesaic.compose.scaling import Sizes, share, sizes_of
from moesaic.config import PUBLISHED, DecoderConfig
from moesaic.testing import tiny_config, tiny_decoder

DENSE = Sizes(ends=10, block=100, blocks=4)
SPARSE = Sizes(ends=10, block=100, blocks=4, experts=300, travelling=48)


@pytest.mark.parametrize("sparse", [{}, {"num_experts": 4, "experts_per_token": 2}])
def test_sizes_add_up_to_the_parameters_of_a_decoder(sparse):
    found = sizes_of(tiny_config(**sparse))
    assert found.parameters == sum(p.numel() for p in tiny_decoder(**sparse).parameters())
    assert found.travelling == (2 * 3 * 2 * 32 if sparse else 0) and bool(found.experts) == bool(sparse)


def test_the_published_sizes_have_the_published_parameters():
    found = {name: sizes_of(DecoderConfig(**PUBLISHED[name])).parameters for name in ("llama-3-8b", "llama-3-70b")}
    assert found == {"llama-3-8b": 8_030_261_248, "llama-3-70b": 70_553_706_496}


def test_copies_hold_everything_and_send_gradients_twice_around():
    found = share(DENSE, "ddp", 4, tokens=7)
    assert (found.weights, found.gradients, found.moments, found.gathered) == (1640, 1640, 3280, 0)
    assert found.sent == 2 * 1640 * 3 // 4 and found.held == 6560


def test_pieces_hold_their_share_and_gather_every_block_twice():
    found = share(DENSE, "fsdp", 4, tokens=7)
    assert (found.weights, found.gradients, found.moments) == (410, 410, 820)
    assert found.gathered == 4 * (10 + 3 * 100)
    assert found.sent == 4 * (2 * 400 + 10) * 3 // 4 + found.scattered and found.scattered == 1640 * 3 // 4
    assert share(DENSE, "fsdp", 4, 7, micro_batches=3).sent == 3 * found.sent


def test_experts_stay_where_they_are_and_tokens_travel():
    found, gathered = share(SPARSE, "ep", 2, tokens=7), share(SPARSE, "fsdp", 2, tokens=7)
    assert found.held == gathered.held
    dense = share(replace(SPARSE, experts=0), "fsdp", 2, tokens=7)
    assert found.sent == dense.sent + 2 * 4 * 48 * 7 // 2 and found.gathered == dense.gathered
