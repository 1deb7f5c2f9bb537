"""Is a model that reads in chunks, in batches and from caches the same model? Against whole rows read alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic.model.decoder import Decoder
from moesaic.nn import Cache
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


def read(decoder: Decoder, cache: Cache, chunk: torch.Tensor, lengths: int | torch.Tensor | None = None):
    logits = decoder(chunk, cache).logits
    cache.advance(chunk.shape[1] if lengths is None else lengths)
    return logits


@pytest.mark.slow
@quick
@torch.no_grad()
@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(0, 4))
def test_any_chunks_through_the_cache_equal_the_whole_text(sizes, spare):
    decoder, text = SHALLOW, ids(2, sum(sizes))
    whole, cache, at = decoder(text).logits, empty(decoder, 2, sum(sizes) + spare), 0
    for size in sizes:
        close(read(decoder, cache, text[:, at : at + size]), whole[:, at : at + size])
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
        logits = read(decoder, cache, chunk, torch.tensor(pace))
        for row, size in enumerate(pace):
            close(logits[row, :size], whole[row][at[row] : at[row] + size])
            at[row] += size
    assert cache.lengths.tolist() == at


@torch.no_grad()
def test_caches_of_other_capacity_and_length_join_and_read_on():
    decoder = tiny_decoder()
    texts = [ids(1, 9, seed=1), ids(2, 6, seed=2), ids(1, 4, seed=3)]
    caches = []
    for text, capacity in zip(texts, (12, 7, 5), strict=True):
        caches.append(empty(decoder, len(text), capacity))
        read(decoder, caches[-1], text[:, :-1])
    joined = Cache.join(caches)
    assert joined.capacity == 12 and joined.lengths.tolist() == [8, 5, 5, 3]
    logits = read(decoder, joined, torch.cat([text[:, -1:] for text in texts]))[:, 0]
    close(logits, torch.cat([decoder(text).logits[:, -1] for text in texts]))
    assert [cache.lengths.tolist() for cache in caches] == [[8], [5, 5], [3]], "the parts are as they were"
    assert [cache.capacity for cache in caches] == [12, 7, 5]


@torch.no_grad()
def test_rows_leave_change_places_and_multiply():
    decoder, text = tiny_decoder(), ids(3, 5)
    cache = empty(decoder, 3, 9)
    read(decoder, cache, text, torch.tensor([5, 3, 4]))
    rows = torch.tensor([2, 0, 2])
    selected, repeated, following = cache.select(rows), cache.repeat(2), ids(6, 1, seed=5)
    assert selected.lengths.tolist() == [4, 5, 4] and repeated.lengths.tolist() == [5, 5, 3, 3, 4, 4]
    for some, sources in ((selected, [2, 0, 2]), (repeated, [0, 0, 1, 1, 2, 2])):
        logits = read(decoder, some, following[: len(sources)])[:, 0]
        for place, source in enumerate(sources):
            alone = torch.cat([text[source, : (5, 3, 4)[source]], following[place]])[None]
            close(logits[place], decoder(alone).logits[0, -1])
    assert cache.lengths.tolist() == [5, 3, 4]


@torch.no_grad()
def test_what_stands_after_a_rows_length_is_never_seen():
    decoder, text = tiny_decoder(), ids(2, 4)
    clean, dirty = empty(decoder, 2, 8), empty(decoder, 2, 8)
    for tensor in (*dirty.keys, *dirty.values):
        tensor.fill_(1e6)
    assert read(decoder, clean, text).equal(read(decoder, dirty, text))


@torch.no_grad()
def test_a_cache_without_room_refuses():
    decoder = tiny_decoder()
    cache = empty(decoder, 1, 4)
    read(decoder, cache, ids(1, 4))
    with pytest.raises((IndexError, RuntimeError)):
        read(decoder, cache, ids(1, 1))


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "relative"), [(F32, 1e-5), (F64, 1e-12)])
def test_a_row_alone_and_in_a_padded_batch_agree(dtype, relative):
    decoder, lengths = tiny_decoder(dtype=dtype), [3, 17, 9, 1]
    padded = ids(4, 17, seed=3)
    together = decoder(padded).logits
    cached = read(decoder, empty(decoder, 4, 40), padded, torch.tensor(lengths))
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
