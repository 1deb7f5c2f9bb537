"""Does every text come back exactly, is training repeatable, and does text never turn into control?"""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from moesaic.errors import WeightsError
from moesaic.tokenizer import END, Tokenizer

TEXTS = ["the sum of two and two is four", "def add(a, b):\n    return a + b", "naïve café 12 123 1234"] * 3


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 290)


@settings(max_examples=100, deadline=None)
@given(st.text())
@example("  two  spaces\tand\r\nlines\n\n")
@example("e\u0301 é \U0001d518 日本 👩‍👩‍👧 \u200b\x00\ufeff")
@example(END)
def test_every_text_comes_back_exactly(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_training_is_repeatable_and_gives_the_vocabulary_asked_for(tokenizer):
    again = Tokenizer.train(iter(TEXTS), 290)
    assert again.inner.to_str() == tokenizer.inner.to_str()
    assert tokenizer.vocab_size == 290
    assert tokenizer.inner.to_str() != Tokenizer.train(TEXTS, 270).inner.to_str()


def test_merges_shorten_what_was_seen(tokenizer):
    assert len(tokenizer.encode("the sum of two")) < len("the sum of two") / 1.5
    assert len(tokenizer.encode("日")) == 3, "bytes, where nothing was seen"


def test_digits_stand_alone(tokenizer):
    single = [tokenizer.encode(digit)[0] for digit in "1234"]
    assert tokenizer.encode("1234") == single


def test_what_spells_a_special_token_is_text(tokenizer, tmp_path):
    text = f"before {END} after"
    tokenizer.save(tmp_path)
    for one in (tokenizer, Tokenizer.load(tmp_path, tokenizer.eos)):
        assert one.eos not in one.encode(text) and one.eos not in one.encode(END)
        assert one.decode(one.encode(text)) == text
        assert one.decode([*one.encode("end"), one.eos]) == "end", "the end token itself is silent"
        assert one.encode("") == []


def test_a_tokenizer_comes_back_from_its_folder(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path, tokenizer.eos)
    assert again.inner.to_str() == tokenizer.inner.to_str() and again.eos == tokenizer.eos
    assert again.inner.id_to_token(again.eos) == END


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b"\xff\xfe", b'{"model": {"type": "BPE"}}'])
def test_what_is_no_tokenizer_is_refused_by_name(data, tmp_path, capfd):
    (tmp_path / "tokenizer.json").write_bytes(data)
    with pytest.raises(WeightsError, match=r"tokenizer\.json: not a readable tokenizer"):
        Tokenizer.load(tmp_path, 0)


def test_a_missing_file_and_a_missing_end_token_are_refused(tokenizer, tmp_path):
    with pytest.raises(WeightsError, match=r"tokenizer\.json: no tokenizer here"):
        Tokenizer.load(tmp_path, 0)
    tokenizer.save(tmp_path)
    with pytest.raises(WeightsError, match="lacks the model's end-of-text token; got 290|eos.*290"):
        Tokenizer.load(tmp_path, 290)
