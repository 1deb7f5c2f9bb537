"""Property: `--bad-rows skip --max-bad N`: what is left out, what is too much, and that both are only overrides."""

import json

import pytest

from moesaic.cli.main import status
from moesaic.errors import RecipeError
from moesaic.stages.base import BasePart

VERBS = ["run", "pretrain", "train-expert", "verify-expert", "train-router", "compose", "evaluate"]


@pytest.fixture
def call(recipe, monkeypatch, capsys):
    """A verb over texts with two bad rows, up to where training would begin: exit status, stderr, run directory."""
    rows = recipe.with_name("sums-train.jsonl")
    rows.write_text('{"prompt": "a", "response": ""}\n' + rows.read_text() + '{"prompt": "cut of')

    def stop(*_):
        raise RecipeError("the data is read")

    monkeypatch.setattr(BasePart, "inputs", stop)

    def call(*arguments):
        code = status([*arguments[:1], recipe.name, *arguments[1:]])
        return code, capsys.readouterr().err, recipe.parent / "runs/small"

    return call


@pytest.mark.parametrize(
    "options", [("--bad-rows", "skip", "--max-bad", "2"), ("bad_rows=skip", "max_bad=2")], ids=" ".join
)
def test_as_many_bad_rows_as_allowed_are_skipped_and_listed(call, options):
    code, said, root = call("run", *options)
    assert code == 2 and said.endswith("error: the data is read\n")
    assert "2 of 26 rows of " in said and "sums-train.jsonl skipped: see rejects.jsonl" in said
    listed = [json.loads(line) for line in (root / "rejects.jsonl").read_text().splitlines()]
    assert [set(row) for row in listed] == [{"path", "line", "field", "reason", "text"}] * 2
    assert [(row["line"], row["field"], row["reason"][:8]) for row in listed] == [
        (1, "response", "empty; e"),
        (26, None, "not JSON"),
    ]
    counts = json.loads((root / "data.json").read_text())["files"]
    assert counts.pop("sums-train.jsonl") == {"read": 26, "used": 24, "skipped": {"empty": 1, "not JSON": 1}}
    assert len(counts) == 3 and all(rows["skipped"] == {} for rows in counts.values())
    assert "bad_rows: skip\nmax_bad: 2\n" in (root / "recipe.yaml").read_text()


def test_one_more_than_allowed_ends_the_run_and_names_the_list(call):
    code, said, root = call("run", "--bad-rows", "skip", "--max-bad", "1")
    assert code == 3 and said.count("\n") == 1
    assert "sums-train.jsonl:26: too many unusable rows; expected at most 1 in all files (max_bad); got 2" in said
    assert f"see {root / 'rejects.jsonl'}" in said and "sums-train.jsonl:1: response: empty" in said
    assert len((root / "rejects.jsonl").read_text().splitlines()) == 2
    assert not (root / "data.json").exists()


def test_the_first_bad_row_stops_a_run_that_says_nothing_else_and_an_old_list_goes(call):
    call("run", "--bad-rows", "skip")
    code, said, root = call("run", "--quiet")
    assert code == 3 and "sums-train.jsonl:1: response: empty; expected text" in said
    assert not (root / "rejects.jsonl").exists()


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--bad-rows", "ignore"], "<command line>: bad_rows: wrong value; expected 'stop' or 'skip'; got 'ignore'"),
        (["--bad-rows", "skip", "--max-bad", "few"], "<command line>: max_bad: wrong value; expected a whole number"),
        (["--max-bad", "3"], "<command line>: max_bad: has no effect here; it goes with bad_rows: skip"),
    ],
)
def test_every_verb_of_a_recipe_knows_them(call, verb, options, says):
    code, said, root = call(verb, *options)
    assert code == 2 and says in said and said.count("\n") == 1
    assert not root.exists()
