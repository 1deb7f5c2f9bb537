"""Property: a base is pretrained on shards as they say, and on nothing that experts are judged on."""

import json
from pathlib import Path

import pytest

from moesaic import stages
from moesaic.data.tokenizing import tokenize
from moesaic.errors import DataError, RecipeError
from moesaic.files import read_manifest
from moesaic.recipe import Recipe, parse
from moesaic.tokenizer import Tokenizer

ROWS = [{"text": f"row {number} says {'well ' * (number % 5)}{number * 7}"} for number in range(80)]


def written(path: Path, rows: list) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def recipe(folder: Path, shards: str = "corpus", vocab_size: int = 270, **pretrain: object) -> Recipe:
    """Two experts, one of which is judged on rows that are in the corpus too."""
    rows = {"train": [{"text": "nothing else"}], "validation": [{"text": "this neither"}], "test": ROWS[:9]}
    own = {split: written(folder / f"{split}.jsonl", some) for split, some in rows.items()}
    settings = {"data": {"shards": shards}, "steps": 3, "batch": 2, "length": 16, "accumulate": 2, **pretrain}
    return parse(
        {
            "name": "sharded",
            "data_root": str(folder),
            "base": {"size": "nano", "vocab_size": vocab_size, "pretrain": settings},
            "experts": {
                "own": {"kind": "lora", "data": own},
                "sums": {"kind": "lora", "data": {"demo": "math"}},
            },
            "router": {"kind": "linear", "feature": "embedding_mean"},
        }
    )


@pytest.fixture
def folder(tmp_path) -> Path:
    tokenize([written(tmp_path / "rows.jsonl", ROWS)], tmp_path / "corpus", vocab_size=270, unseen=0.1)
    return tmp_path


@pytest.mark.parametrize("apart", [False, True])
def test_a_base_learns_from_shards_but_from_nothing_that_is_judged_on(apart, folder):
    base = stages.pretrain(recipe(folder, apart=apart), folder / "run")
    facts, held = read_manifest(base), read_manifest(folder / "corpus")
    assert held["train"]["texts"] - facts["rows"]["train"] == 9 - sum(judged(folder)) > 0
    assert facts["rows"]["validation"] == held["unseen"]["texts"]
    assert facts["tokens_seen"] == 3 * 2 * 2 * 16 and 0 < facts["tokens"] < held["train"]["tokens"]
    assert facts["epochs"] == pytest.approx(facts["tokens_seen"] / facts["tokens"], abs=1e-4)
    assert Tokenizer.load(base).identity == Tokenizer.load(folder / "corpus").identity
    again = stages.pretrain(recipe(folder, apart=apart), folder / "run")
    assert read_manifest(again) == facts, "finished, skipped"


def judged(folder: Path) -> list[bool]:
    """Whether each of the judged rows is kept apart as unseen."""
    from moesaic.data.rows import examples_of
    from moesaic.data.token_shards import is_unseen

    return [is_unseen(one, 0.1) for row in ROWS[:9] for one in examples_of(row)]


def test_fewer_rows_than_the_tokenizer_of_the_shards_has_are_refused(folder):
    with pytest.raises(RecipeError, match=r"base\.vocab_size: .*expected at least 26\d; got 258"):
        stages.pretrain(recipe(folder, vocab_size=258), folder / "run")


def test_shards_without_unseen_text_are_refused(folder):
    tokenize([str(folder / "rows.jsonl")], folder / "all", tokenizer=folder / "corpus", unseen=0.0)
    with pytest.raises(DataError, match="no text to validate on"):
        stages.pretrain(recipe(folder, shards="all"), folder / "run")


@pytest.mark.parametrize("key", ["recompute", "compile"])
def test_later_keys_are_no_part_of_the_keys_of_earlier_runs(key, folder):
    plain = recipe(folder).base.new.pretrain
    assert not {"schedule", "decay", "parallel", "recompute", "compile", "apart"} & plain.model_dump().keys()
    assert recipe(folder, **{key: True}).base.new.pretrain.model_dump()[key] is True
