"""Does text of files and of the hub become shards, with a tokenizer of its own or a given one?"""

import json

import pytest

from moesaic.data.token_shards import Shards
from moesaic.data.tokenizing import tokenize
from moesaic.errors import DataError, RecipeError, StorageError

ROWS = [{"text": f"line {number} of {number * number}"} for number in range(40)]


def written(path, rows=ROWS) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def texts(shards: Shards) -> list[str]:
    both = (shards.train, shards.unseen)
    return sorted(shards.tokenizer.decode(some.ids(i).tolist()) for some in both for i in range(len(some.lengths)))


def test_files_become_shards_with_a_tokenizer_of_their_own(tmp_path):
    more = written(tmp_path / "more.jsonl", [*ROWS[:5], {"prompt": "one more", "response": "line"}])
    found = tokenize([written(tmp_path / "rows.jsonl"), more], tmp_path / "out", vocab_size=280, unseen=0.2)
    shards = Shards.open(tmp_path / "out")
    assert texts(shards) == sorted(["one more\nline", *(row["text"] for row in ROWS)])
    assert (found["repeated"], found["vocab_size"]) == (5, shards.tokenizer.vocab_size)
    assert found["train"]["texts"] + found["unseen"]["texts"] == 41 and found["unseen"]["texts"] > 0
    again = tokenize([more], tmp_path / "again", tokenizer=tmp_path / "out", limit=3)
    assert Shards.open(tmp_path / "again").tokenizer.identity == shards.tokenizer.identity
    assert again["train"]["texts"] + again["unseen"]["texts"] == 3


def test_the_hub_is_streamed(tmp_path, monkeypatch):
    import datasets

    asked = []

    def load(*where, split, streaming):
        asked.append((*where, split, streaming))
        return datasets.Dataset.from_list(ROWS).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load)
    tokenize(["hub:me/mine/plain/train"], tmp_path / "out", vocab_size=280, limit=10)
    assert {*asked} == {("me/mine", "plain", "train", True)}
    assert texts(Shards.open(tmp_path / "out")) == sorted(row["text"] for row in ROWS[:10])


def test_a_conversation_is_one_text(tmp_path):
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    row = {"messages": [{"role": role, "content": text} for role, text in turns]}
    tokenize([written(tmp_path / "talk.jsonl", [row])], tmp_path / "out", vocab_size=260, unseen=0.0)
    (found,) = texts(Shards.open(tmp_path / "out"))
    assert all(text in found for _, text in turns)


@pytest.mark.parametrize(
    ("how", "what"),
    [({}, "a tokenizer is missing"), ({"vocab_size": 280, "unseen": 1.0}, "not a share")],
)
def test_what_cannot_be_is_refused(how, what, tmp_path):
    with pytest.raises(RecipeError, match=what):
        tokenize([written(tmp_path / "rows.jsonl")], tmp_path / "out", **how)


def test_a_bad_row_is_named_and_nothing_is_replaced(tmp_path):
    bad = written(tmp_path / "bad.jsonl", [ROWS[0], {"other": 1}])
    with pytest.raises(DataError, match=r"bad\.jsonl:2"):
        tokenize([bad], tmp_path / "out", vocab_size=280)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    with pytest.raises(StorageError, match="already exists"):
        tokenize([written(tmp_path / "rows.jsonl")], tmp_path / "out", vocab_size=280)
