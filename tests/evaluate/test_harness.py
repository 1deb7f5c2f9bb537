"""Does one call evaluate base, experts and mixture on a task of our own, offline, and say who answered each row?"""

import json

import pytest

from moesaic.errors import DataError, RecipeError
from moesaic.evaluate import harness
from moesaic.evaluate.harness import judge_tasks
from moesaic.evaluate.harness_model import HarnessModel
from moesaic.generate.loaded import load

CHOICES = """\
task: birds
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/birds.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
TEXTS = """\
task: songs
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/songs.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}]
"""
ROWS = [{"question": f"{one} sing", "choices": ["well", "in trees"], "answer": n % 2} for n, one in enumerate("abcd")]
SONGS = [{"text": "the sum of two and two"}, {"text": "def add(a, b)"}]


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture
def tasks(tmp_path):
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, text, rows in (("birds", CHOICES, ROWS), ("songs", TEXTS, SONGS)):
        (folder / f"{name}.yaml").write_text(text.replace("FOLDER", str(folder)))
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_base_experts_and_mixture_stand_in_one_table_and_each_row_says_who_answered(parts, tasks, tmp_path):
    log = tmp_path / "samples.jsonl"
    found = judge_tasks(parts.folder / "mixture", ["birds", "songs"], include=tasks, samples=log)["contenders"]
    assert [*found] == ["base", "expert:two", "expert:one", "mixture"]
    assert all({*found[name]} == {"birds", "songs"} for name in found)
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(rows) == 4 * (len(ROWS) + len(SONGS))
    model = load(parts.folder / "mixture")
    for row in rows:
        kind, _, name = row["contender"].partition(":")
        asked = row["arguments"][0][0]
        if kind == "mixture" and row["task"] == "birds":
            assert row["experts"] == [model.route(asked, raw=True).chosen]
        elif kind != "mixture":
            assert row["experts"] == [name or "base"]
    own = [row for row in rows if row["contender"] == "base" and row["task"] == "birds"]
    assert found["base"]["birds"]["acc,none"] == sum(row["acc"] for row in own) / len(ROWS)
    assert found["base"]["birds"]["acc_stderr,none"] > 0
    # a choice is the most probable continuation behind a blank
    lm = HarnessModel(model, "base")
    for row in own:
        ids = [lm._encode_pair(row["doc"]["question"], f" {one}") for one in row["doc"]["choices"]]
        mine = [one for one, _ in lm.scored(ids, [context for context, _ in ids], ["it"] * 2)]
        assert [one for ((one, _),) in row["resps"]] == pytest.approx(mine, abs=1e-6)
        assert row["acc"] == float(max(range(2), key=mine.__getitem__) == row["doc"]["answer"])


def test_a_base_stands_alone_and_a_limit_takes_the_first_rows(parts, tasks):
    found = judge_tasks(parts.folder / "base", ["birds"], include=tasks, limit=2)["contenders"]
    assert [*found] == ["base"] and found["base"]["birds"]["acc,none"] in (0, 0.5, 1)
    found = judge_tasks(parts.folder / "one", ["birds"], include=tasks, limit=2)["contenders"]
    assert [*found] == ["base", "expert:one"]


def test_unknown_tasks_folders_and_a_missing_package_are_refused(parts, tasks, monkeypatch):
    with pytest.raises(DataError, match="no folder of tasks"):
        judge_tasks(parts.folder / "base", ["birds"], include=tasks / "nowhere")
    with pytest.raises(RecipeError, match="tasks: no such task of lm-evaluation-harness: hellaswagg; did you mean"):
        judge_tasks(parts.folder / "base", ["hellaswagg"], include=tasks)
    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install 'moesaic\[lm-eval\]'"):
        judge_tasks(parts.folder / "base", ["birds"], include=tasks)
