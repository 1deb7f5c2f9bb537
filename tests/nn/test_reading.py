"""Property: a model that reads in chunks, in batches and from caches equals itself on whole rows read alone."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic.errors import MemoryLimitError
from moesaic.model.decoder import Decoder
from moesaic.nn import Cache, Slots, Spare
from moesaic.testing import tiny_decoder

quick = settings(max_examples=8, deadline=None)
F32, F64 = torch.float32, torch.float64
SHALLOW = tiny_decoder(num_layers=2)


def ids(rows: int, tokens: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(61, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def close(a: torch.Tensor, b: torch.Tensor, relative: float = 1e-12) -> None:
    assert (a - b).abs().max() <= relative * b.abs().max()


def empty(decoder: Decoder, rows: int, capacity: int) -> Cache:
    return Cache.empty(decoder.config, rows, capacity, like=decoder.norm.weight)


def read(decoder: Decoder, cache: Cache, chunk: torch.Tensor, counts: Sequence[int] | None = None):
    logits = decoder(chunk, cache).logits
    return logits, cache.advance(chunk.shape[1]) if counts is None else cache.advance_each(counts)


@pytest.mark.slow
@quick
@torch.no_grad()
@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(0, 4))
def test_any_chunks_through_the_cache_equal_the_whole_text(sizes, spare):
    decoder, text = SHALLOW, ids(2, sum(sizes))
    whole, cache, at = decoder(text).logits, empty(decoder, 2, sum(sizes) + spare), 0
    for size in sizes:
        logits, cache = read(decoder, cache, text[:, at : at + size])
        close(logits, whole[:, at : at + size])
        at += size
    assert cache.lengths.tolist() == [sum(sizes)] * 2 and cache.capacity == sum(sizes) + spare


@pytest.mark.slow
@quick
@torch.no_grad()
@given(st.lists(st.tuples(*[st.integers(1, 4)] * 3), min_size=1, max_size=4))
def test_rows_that_read_at_their_own_pace_equal_each_alone(paces):
    """Every chunk is padded with other tokens; what a row reads later overwrites the padding."""
    decoder = SHALLOW
    texts = [ids(1, sum(pace[row] for pace in paces), seed=row)[0] for row in range(3)]
    whole = [decoder(text[None]).logits[0] for text in texts]
    cache, at = empty(decoder, 3, 20), [0, 0, 0]
    for step, pace in enumerate(paces):
        chunk = ids(3, max(pace), seed=100 + step)
        for row, size in enumerate(pace):
            chunk[row, :size] = texts[row][at[row] : at[row] + size]
        logits, cache = read(decoder, cache, chunk, pace)
        for row, size in enumerate(pace):
            close(logits[row, :size], whole[row][at[row] : at[row] + size])
            at[row] += size
    assert cache.lengths.tolist() == at


@torch.no_grad()
def test_rows_of_one_memory_come_at_different_times_and_read_on_together():
    decoder = tiny_decoder()
    memory = Slots(decoder.config, 4, 12, decoder.norm.weight)
    texts = [ids(1, 9, seed=1), ids(2, 6, seed=2), ids(1, 4, seed=3)]
    caches = [read(decoder, Cache.of(memory, memory.spare.take(len(text))), text[:, :-1])[1] for text in texts]
    joined = Cache.join(caches)
    assert joined.slots == (0, 1, 2, 3) and joined.lengths.tolist() == [8, 5, 5, 3] and len(joined.runs) == 1
    logits, _ = read(decoder, joined, torch.cat([text[:, -1:] for text in texts]))
    close(logits[:, 0], torch.cat([decoder(text).logits[:, -1] for text in texts]))
    assert [cache.lengths.tolist() for cache in caches] == [[8], [5, 5], [3]], "the parts are as they were"


@torch.no_grad()
def test_rows_leave_change_places_and_multiply():
    decoder, text = tiny_decoder(), ids(3, 5)
    memory = Slots(decoder.config, 7, 9, decoder.norm.weight)
    _, cache = read(decoder, Cache.of(memory, (0, 2, 5)), text, [5, 3, 4])
    selected, repeated, following = cache.select([2, 0]), cache.repeat([(0, 1), (2, 3), (5, 6)]), ids(6, 1, seed=5)
    assert selected.lengths.tolist() == [4, 5] and repeated.lengths.tolist() == [5, 5, 3, 3, 4, 4]
    assert len(selected.runs) == 2 and [run.rows for run in repeated.runs] == [slice(0, 4), slice(4, 6)]
    for some, sources in ((selected, [2, 0]), (repeated, [0, 0, 1, 1, 2, 2])):
        logits, _ = read(decoder, some, following[: len(sources)])
        for place, source in enumerate(sources):
            alone = torch.cat([text[source, : (5, 3, 4)[source]], following[place]])[None]
            close(logits[place, 0], decoder(alone).logits[0, -1])
    assert cache.lengths.tolist() == [5, 3, 4]


@torch.no_grad()
def test_memory_grows_by_blocks_and_what_has_been_read_stays_where_it_is():
    decoder, text = tiny_decoder(), ids(3, 5)
    memory = Slots(decoder.config, 1, 9, decoder.norm.weight)
    _, cache = read(decoder, Cache.of(memory, memory.spare.take(1)), text[:1, :-1])
    before = [tensor.data_ptr() for tensor in memory.blocks[0].keys]
    memory.grow(2)
    _, late = read(decoder, Cache.of(memory, memory.spare.take(2)), text[1:, :-1])
    joined = Cache.join([cache, late])
    assert joined.slots == (0, 1, 2) and [run.offset for run in joined.runs] == [0, 0]
    close(read(decoder, joined, text[:, -1:])[0][:, 0], decoder(text).logits[:, -1])
    assert [tensor.data_ptr() for tensor in memory.blocks[0].keys] == before


def test_free_slots_are_taken_from_the_lowest_and_never_twice():
    spare = Spare(range(4))
    assert spare.take(2) == (0, 1)
    spare.add([0])
    assert spare.take(2) == (0, 2) and len(spare) == 1
    with pytest.raises(MemoryLimitError, match="too few free slots; expected at most 1 rows; got 2"):
        spare.take(2)


@torch.no_grad()
def test_what_stands_after_a_rows_length_is_never_seen():
    decoder, text = tiny_decoder(), ids(2, 4)
    clean, dirty = empty(decoder, 2, 8), empty(decoder, 2, 8)
    for tensor in (*dirty.memory.blocks[0].keys, *dirty.memory.blocks[0].values):
        tensor.fill_(1e6)
    assert read(decoder, clean, text)[0].equal(read(decoder, dirty, text)[0])


@torch.no_grad()
def test_a_cache_without_room_refuses():
    decoder = tiny_decoder()
    _, cache = read(decoder, empty(decoder, 1, 4), ids(1, 4))
    with pytest.raises((IndexError, RuntimeError)):
        read(decoder, cache, ids(1, 1))


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "relative"), [(F32, 1e-5), (F64, 1e-12)])
def test_a_row_alone_and_in_a_padded_batch_agree(dtype, relative):
    decoder, lengths = tiny_decoder(dtype=dtype), [3, 17, 9, 1]
    padded = ids(4, 17, seed=3)
    together = decoder(padded).logits
    cached, _ = read(decoder, empty(decoder, 4, 40), padded, lengths)
    for row, length in enumerate(lengths):
        alone = decoder(padded[row : row + 1, :length]).logits[0]
        assert alone.dtype == dtype
        close(together[row, :length], alone, relative)
        close(cached[row, :length], alone, relative)


@torch.no_grad()
@pytest.mark.parametrize("layers", [1, 3])
def test_ranges_of_blocks_one_after_the_other_are_the_whole_model(layers):
    decoder, text = tiny_decoder(num_layers=layers), ids(2, 6)
    x, cache = decoder.embed_tokens(text), empty(decoder, 2, 6)
    for layer in range(layers):
        x, routings = decoder.run(x, cache, range(layer, layer + 1), None)
        assert routings == [None]
    close(decoder.head(x, None), decoder(text).logits)


@torch.no_grad()
def test_a_later_token_changes_nothing_before_it():
    decoder, text = tiny_decoder(), ids(1, 6)
    other = text.clone()
    other[0, 4] = (other[0, 4] + 1) % 61
    one, two = decoder(text).logits, decoder(other).logits
    close(one[:, :4], two[:, :4])
    assert (one[:, 4:] - two[:, 4:]).abs().amax(-1).min() > 1e-3


@torch.no_grad()
def test_a_mask_is_built_only_where_rows_differ_or_a_chunk_follows_another(monkeypatch):
    attend, masks = torch.nn.functional.scaled_dot_product_attention, list[tuple[int, ...] | None]()

    def noted(q, k, v, attn_mask=None, **options):
        masks.append(None if attn_mask is None else tuple(attn_mask.shape))
        return attend(q, k, v, attn_mask=attn_mask, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
    decoder, text = tiny_decoder(num_layers=1), ids(2, 5)
    _, alike = read(decoder, empty(decoder, 2, 20), text)
    _, alike = read(decoder, alike, text[:, :1])
    assert masks == [None, None], "prompts, then one token of rows of equal length"
    _, uneven = read(decoder, empty(decoder, 2, 20), text, [5, 3])
    read(decoder, uneven, text[:, :1])
    read(decoder, alike, text[:, :2])
    assert masks[2:] == [None, (2, 1, 1, 6), (2, 1, 2, 8)], "up to what is held, not to the capacity of 20"
