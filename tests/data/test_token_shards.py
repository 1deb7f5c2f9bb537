"""Do texts come back from shards as they were encoded, each once, and apart from those that nobody learns from?"""

import numpy as np
import pytest
import torch

from moesaic.data import token_shards
from moesaic.data.batches import Held, Packed, encode_all
from moesaic.data.rows import examples_of
from moesaic.data.token_shards import Shards, write_shards
from moesaic.errors import DataError, WeightsError
from moesaic.tokenizer import Tokenizer

TEXTS = [f"text {number} says {'so ' * (number % 7)}{number * number}" for number in range(60)]
EXAMPLES = [one for text in TEXTS for one in examples_of({"text": text})]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 300)


def texts_of(stream, tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.decode(stream.ids(index).tolist()) for index in range(len(stream.lengths))]


@pytest.mark.parametrize("tokens_per_file", [1, 100, 10_000])
def test_every_text_comes_back_from_whatever_files(tokens_per_file, tokenizer, tmp_path):
    facts = write_shards(tmp_path, EXAMPLES, tokenizer, 0.2, tokens_per_file)
    shards = Shards.open(tmp_path)
    trained, unseen = texts_of(shards.train, tokenizer), texts_of(shards.unseen, tokenizer)
    assert sorted([*trained, *unseen]) == sorted(TEXTS)
    assert all(shards.train.ids(index)[-1] == tokenizer.eos for index in range(len(trained)))
    assert facts["train"]["texts"] == len(trained) and facts["unseen"]["texts"] == len(unseen) > 0
    assert facts["train"]["tokens"] == shards.train.lengths.sum()
    assert facts["train"]["files"] == {1: len(trained), 10_000: 1}.get(tokens_per_file, facts["train"]["files"])
    assert shards.tokenizer.identity == tokenizer.identity
    assert shards.train.source(0) == "train-00000.tokens.bin, text 1"


def test_a_text_is_kept_once_and_on_one_side_whatever_else_is_there(tokenizer, tmp_path):
    folders = tmp_path / "some", tmp_path / "twice"
    for folder, examples in zip(folders, (EXAMPLES[:30], [*EXAMPLES[::-1], *EXAMPLES[:10]]), strict=True):
        folder.mkdir()
        facts = write_shards(folder, examples, tokenizer, 0.3)
    some, twice = map(Shards.open, folders)
    assert facts["repeated"] == 10 and len(twice.train.lengths) + len(twice.unseen.lengths) == 60
    assert {*texts_of(some.unseen, tokenizer)} == {*texts_of(twice.unseen, tokenizer)} & {*TEXTS[:30]}


def test_batches_of_shards_are_those_of_the_texts_in_memory(tokenizer, tmp_path):
    write_shards(tmp_path, EXAMPLES, tokenizer, 0.0, 100)
    rows, _ = encode_all(EXAMPLES, tokenizer, 1 << 30, 1)
    for apart in (False, True):
        mapped = Packed(Shards.open(tmp_path).train, 16, 3, 5, apart)
        held = Packed(Held(rows), 16, 3, 5, apart)
        for step in (0, 3, 41, 7):
            one, other = mapped(step), held(step)
            assert torch.equal(one.ids, other.ids) and torch.equal(one.targets, other.targets)
        assert torch.equal(mapped(3).ids, Packed(Shards.open(tmp_path).train, 16, 3, 5, apart)(3).ids)


def test_rows_to_judge_by_are_cut_and_all_scored_but_the_first_token(tokenizer, tmp_path):
    write_shards(tmp_path, EXAMPLES, tokenizer, 0.5)
    unseen = Shards.open(tmp_path).unseen
    rows = unseen.rows(4, 9)
    assert [row.ids for row in rows] == [unseen.ids(index)[:9].tolist() for index in range(4)]
    assert all(row.prompt == 1 for row in rows) and len(unseen.rows(1000, 9)) == len(unseen.lengths)


@pytest.mark.parametrize(("spare", "dtype"), [(0, "<u2"), (-1, "<u4")])
def test_tokens_take_two_bytes_where_that_is_enough(spare, dtype, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(token_shards, "NARROW", tokenizer.vocab_size + spare)
    assert write_shards(tmp_path, EXAMPLES, tokenizer, 0.2)["dtype"] == dtype
    assert sorted(texts_of(Shards.open(tmp_path).train, tokenizer))[0].startswith("text 0 ")


def test_no_text_to_train_on_is_refused(tokenizer, tmp_path):
    with pytest.raises(DataError, match="no text to train on"):
        write_shards(tmp_path, EXAMPLES, tokenizer, 1.0)


def test_damage_is_found(tokenizer, tmp_path):
    write_shards(tmp_path, EXAMPLES, tokenizer, 0.2)
    path = tmp_path / "train-00000.tokens.bin"
    tokens = np.fromfile(path, "<u2")
    tokens[5] ^= 1
    path.write_bytes(tokens.tobytes())
    with pytest.raises(WeightsError, match="changed or damaged"):
        Shards.open(tmp_path)
