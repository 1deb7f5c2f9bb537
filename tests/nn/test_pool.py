"""Do pieces of different sizes hold what was read, in one tensor whose size is the bound, and does nothing overlap?"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moesaic.errors import MemoryLimitError
from moesaic.nn import Cache, Pool
from moesaic.nn.pool import Arena, capacity
from moesaic.testing import tiny_config, tiny_decoder

CONFIG, LIKE = tiny_config(), torch.zeros((), dtype=torch.float64)
TOKEN = 2 * 3 * 2 * 8 * 8


def pool(tokens: int = 1000) -> Pool:
    return Pool({0: (CONFIG, LIKE)}, tokens * TOKEN)


@given(st.integers(1, 5000))
def test_a_capacity_is_enough_and_wastes_a_third_at_most(tokens):
    assert tokens <= capacity(tokens) <= max(16, 1.5 * tokens)
    assert capacity(capacity(tokens)) == capacity(tokens)


@given(st.lists(st.integers(1, 60), max_size=25), st.randoms())
def test_pieces_never_overlap_and_a_gap_that_is_large_enough_is_found(sizes, chance):
    arena, held = Arena(200, torch.device("cpu")), {}
    for size in sizes:
        try:
            start = arena.cut(size)
        except MemoryLimitError:
            taken = sorted((start, start + size) for start, size in held.items())
            ends = [0, *(end for _, end in taken)]
            gaps = [start - end for end, start in zip(ends, [*(start for start, _ in taken), 200], strict=True)]
            assert max(gaps) < size
        else:
            assert (arena.bytes[start : start + size] == 0).all() and start + size <= 200
            assert all(start + size <= other or other + held[other] <= start for other in held)
            arena.bytes[start : start + size], held[start] = 255, size
        if held and chance.random() < 0.4:
            gone = chance.choice([*held])
            arena.free(gone, held.pop(gone))


@torch.no_grad()
def test_rows_of_different_capacities_read_what_they_read_without_a_cache():
    decoder = tiny_decoder()
    memory, texts = pool(), [torch.arange(length) % 61 for length in (10, 33, 30, 12)]
    slots = [memory.open([0], len(text) + 1) for text in texts]
    cache = Cache.of(memory.shelf(0), slots)
    assert [run.capacity for run in cache.runs] == [16, 48, 32, 16]
    padded = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
    together = decoder(padded, cache).logits
    for row, text in enumerate(texts):
        torch.testing.assert_close(together[row, : len(text)], decoder(text[None]).logits[0], rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_neighbours_of_equal_size_are_one_run_and_read_together():
    memory = pool()
    slots = [memory.open([0], 16) for _ in range(4)]
    memory.free(slots[1])
    runs = memory.shelf(0).runs([slots[0], slots[2], slots[3]])
    assert [(run.start, run.stop) for run in runs] == [(0, 1), (1, 3)]
    runs[1].block.keys[2][1] = 7.0
    assert (memory.shelf(0).runs([slots[3]])[0].block.keys[2] == 7.0).all()
    assert (memory.shelf(0).runs([slots[3]])[0].block.values[2] == 0.0).all()


@torch.no_grad()
def test_a_slot_that_is_widened_or_copied_keeps_what_was_read():
    decoder, text = tiny_decoder(), torch.arange(20)[None]
    memory = pool()
    first = memory.open([0], 15)
    decoder(text[:, :15], Cache.of(memory.shelf(0), [first]))
    memory.widen(first, 21)
    assert memory.capacity(first) == 24 and memory.start(first) != 0, "the old piece is free"
    second = memory.open([0], 21)
    memory.copy(first, second, 10)
    for slot, read in ((first, 15), (second, 10)):
        cache = Cache.of(memory.shelf(0), [slot], [read])
        logits = decoder(text[:, read:], cache).logits
        torch.testing.assert_close(logits, decoder(text).logits[:, read:], rtol=1e-9, atol=1e-9)


def test_what_does_not_fit_is_refused_and_leaves_all_as_it_was():
    config, like = tiny_config(num_layers=1), LIKE
    memory = Pool({0: (CONFIG, LIKE), 1: (config, like)}, 40 * TOKEN)
    slot = memory.open([0, 1], 16)
    before = memory.arena.pieces[:]
    assert memory.taken(slot) == memory.size([0, 1], 16) == 16 * TOKEN * 4 // 3
    with pytest.raises(MemoryLimitError):
        memory.open([0, 1], 16)
    with pytest.raises(MemoryLimitError):
        memory.widen(slot, 20)
    assert memory.arena.pieces == before and memory.capacity(slot) == 16
    memory.free(slot)
    assert memory.arena.pieces == [] and memory.held(slot) == []


def test_a_piece_is_no_longer_than_the_context():
    assert pool().size([0], 50) == 64 * TOKEN and pool().size([0], 64) == 64 * TOKEN
    short = Pool({0: (tiny_config(context=50), LIKE)}, None)
    assert short.size([0], 49) == 48 * TOKEN + 2 * TOKEN and short.bound == 8192 * TOKEN


def test_decoders_of_other_types_share_the_bytes():
    """What one leaves behind is no number of the other."""
    half = torch.zeros((), dtype=torch.bfloat16)
    memory = Pool({0: (CONFIG, LIKE), 1: (CONFIG, half)}, 64 * TOKEN)
    first = memory.open([0], 60)
    memory.shelf(0).runs([first])[0].block.keys[0].fill_(-1e300)
    memory.free(first)
    (run,) = memory.shelf(1).runs([memory.open([1], 60)])
    assert run.block.keys[0].dtype == torch.bfloat16 and (run.block.keys[0] == 0).all()
