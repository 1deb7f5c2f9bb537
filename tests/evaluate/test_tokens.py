"""Owners of tokens against the scores of whole rows, and pieces of text that join to what was decoded."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic.adapters import attach
from moesaic.data.batches import Tokens
from moesaic.evaluate.score import score
from moesaic.evaluate.tokens import pieces, token_owners
from moesaic.model.decoder import Decoder
from moesaic.routing import controls
from moesaic.testing import ByteTokenizer, tiny_decoder, toy_expert
from moesaic.tokenizer import Tokenizer

NAMES = ("one", "two")
IDS = torch.randint(61, (24,), generator=torch.Generator().manual_seed(3)).tolist()


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def decoder() -> Decoder:
    found = tiny_decoder()
    attach(found, [toy_expert(found, 1), toy_expert(found, 2)])
    return found


def test_the_owner_has_the_fewest_nats_of_all_parts(decoder):
    rows = {"x": [Tokens(IDS[:end], end - 1, "g") for end in range(2, len(IDS) + 1)]}  # scores one token each
    parts = {"base": -1, "one": 0, "two": 1}
    tables = {
        name: score(decoder.score, rows, controls.fixed(expert, len(rows["x"]), 2), 8).nats
        for name, expert in parts.items()
    }
    owners = token_owners(decoder.score, IDS, NAMES)
    assert owners[0] == (None, None, None) and len(owners) == len(IDS)
    for place, (name, nats, base) in enumerate(owners[1:]):
        every = {part: table[place] for part, table in tables.items()}
        assert name == min(every, key=every.__getitem__)
        assert (nats, base) == (pytest.approx(every[name]), pytest.approx(every["base"]))
    assert {name for name, _, _ in owners[1:]} == set(parts)


def test_of_equal_parts_the_base_owns_a_token():
    decoder = tiny_decoder()
    same = toy_expert(decoder, 1)
    for a, b in same.pairs.values():
        a.zero_(), b.zero_()
    attach(decoder, [same])
    assert {name for name, _, _ in token_owners(decoder.score, IDS, ("one",))[1:]} == {"base"}


TEXTS = ["naïve café", "中文和日本語", "👩‍👩‍👧 ok 👍🏽", "\ufffd odd \ufffd", "plain\n\ttext", ""]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_join_to_the_text_and_whole_characters_come_at_once(text):
    tokenizer = ByteTokenizer()
    ids = [*tokenizer.encode(text), tokenizer.eos]
    found = pieces(tokenizer.decode, ids)
    assert "".join(found) == text and len(found) == len(ids)
    assert [piece for piece in found if piece] == list(text)


def test_the_last_token_of_a_character_adds_it():
    tokenizer = ByteTokenizer()
    assert pieces(tokenizer.decode, tokenizer.encode("é€x")) == ["", "é", "", "", "€", "x"]


@given(st.lists(st.integers(0, 256), max_size=12))
@settings(deadline=None)
def test_pieces_join_to_whatever_any_bytes_decode_to(ids):
    found = pieces(ByteTokenizer().decode, ids)
    assert "".join(found) == ByteTokenizer().decode(ids) and len(found) == len(ids)


def test_pieces_of_a_trained_tokenizer_are_its_tokens():
    tokenizer = Tokenizer.train(["the owl and the wren, the owl and the crow"] * 9, 290)
    ids = tokenizer.encode("the owl, zwölf")
    found = pieces(tokenizer.decode, ids)
    assert "".join(found) == "the owl, zwölf" and "the" in found and "ö" in found
