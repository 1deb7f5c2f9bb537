"""A run scores the texts that its contenders write as the recipe asks."""

import json
from typing import Any

import pytest
from small_runs import opened

from moesaic import stages
from moesaic.data.rows import examples_of
from moesaic.data.splits import take
from moesaic.errors import DataError
from moesaic.evaluate.table import plain
from moesaic.evaluate.texts import Wanted, score_texts
from moesaic.generate.loaded import load
from moesaic.recipe import Recipe, parse
from moesaic.runs.progress import Silent
from moesaic.tasks import Run
from moesaic.tasks.written import latencies, question, written

pytestmark = pytest.mark.slow  # whole runs

ASKED = {"metrics": ["exact_match", "rouge", "truth"], "limit": 3, "max_new_tokens": 4}
RECIPE: dict[str, Any] = {
    "name": "small",
    "workers": 1,
    "base": {"size": "nano", "vocab_size": 300, "pretrain": {"steps": 2, "batch": 2, "length": 64, "lr": 1e-2}},
    "train": {"steps": 2, "batch": 2, "length": 64},
    "experts": {
        "adds": {"kind": "lora", "rank": 2, "data": {"train": "adds.jsonl", "test": "adds.jsonl.test"}},
        "tells": {"kind": "lora", "rank": 2, "data": {"train": "tells.jsonl", "test": "tells.jsonl.test"}},
    },
    "router": {"kind": "centroid", "feature": "embedding_mean"},
    "evaluate": {"controls": ["base"], "samples": 0, "batch": 2, "generate": ASKED},
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("texts")
    for end, first, count in (("", 0, 20), (".test", 20, 5)):
        sums = [{"prompt": f"{i} and one", "response": f"{i + 1}"} for i in range(first, first + count)]
        answers = {"correct_answers": ["so"], "incorrect_answers": ["never"]}
        tales = [{**row, "prompt": f"say {row['prompt']}", **answers} for row in sums]
        for name, rows in (("adds", sums), ("tells", tales)):
            (folder / f"{name}.jsonl{end}").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return parse(RECIPE, source=folder / "recipe.yaml")


@pytest.fixture(scope="module")
def run(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, Any]]:
    root = tmp_path_factory.mktemp("run")
    return opened(recipe, root), stages.run(recipe, root, Silent())


def test_every_contender_is_scored_in_every_domain(run: tuple[Run, dict[str, Any]]) -> None:
    _, evaluation = run
    told = evaluation["written"]
    assert told.keys() == {"adds", "tells"}
    assert told["adds"].keys() == told["tells"].keys() == {"base", "expert:adds", "expert:tells", "router"}
    assert told["adds"]["base"].keys() == {"rows", "exact_match", "rouge1", "rougeL"}
    assert told["tells"]["base"].keys() - told["adds"]["base"].keys() == {"truth", "truth_margin", "truth_rows"}
    assert {scores["rows"] for domain in told.values() for scores in domain.values()} == {3}


def test_the_scores_are_those_of_what_it_writes(run: tuple[Run, dict[str, Any]]) -> None:
    source, evaluation = run
    mixture, rows = load(source.dir.root), take(source.materials.domains["adds"].test, 3)
    questions = [question(source.task, row) for row in rows]
    assert [one.wanted for one in questions] == [Wanted((row.response,), (), row.prompt) for row in rows]
    told = evaluation["written"]["adds"]
    for contender, name in (("base", "base"), ("expert:tells", "tells"), ("router", None)):
        made = [mixture.engine.generate([one.ids], max_new_tokens=4, expert=name)[0][0].text for one in questions]
        own = score_texts([text.strip() for text in made], [one.wanted for one in questions], ["exact_match", "rouge"])
        assert told[contender] == pytest.approx({"rows": 3, **own})


def test_answers_are_timed_one_at_a_time(run: tuple[Run, dict[str, Any]]) -> None:
    source, evaluation = run
    latency = evaluation["timing"]["latency"]
    assert latency.keys() == {"base", "router"}
    for one in latency.values():
        assert one["rows"] == 6 and 0 < one["p5"] <= one["median"] <= one["p95"] and 1 <= one["tokens"] <= 4
    page = (source.dir.root / "report" / "index.html").read_text()
    assert 'data-key="timing.latency.router.p95"' in page and "Seconds of an answer" in plain(evaluation, 100)


def test_nothing_is_written_unless_it_is_asked_for(run: tuple[Run, dict[str, Any]], recipe: Recipe) -> None:
    source, _ = run
    silent = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"generate": None})})
    task, engine = opened(silent, source.dir.root).task, load(source.dir.root).engine
    assert written(task, engine) == latencies(task, engine) == {}


def test_truth_without_wrong_answers_is_refused(run: tuple[Run, dict[str, Any]], recipe: Recipe) -> None:
    source, _ = run
    alone = opened(recipe, source.dir.root)
    alone.materials.__dict__["domains"] = {"adds": source.materials.domains["adds"]}
    with pytest.raises(DataError, match="no test row has wrong answers"):
        written(alone.task, load(source.dir.root).engine)


def test_a_row_has_its_right_and_wrong_answers() -> None:
    row = {"prompt": "ask", "response": "say", "correct_answers": ["so"], "incorrect_answers": ["never", "no"]}
    (example,) = examples_of(row)
    assert (example.correct, example.incorrect) == (("so",), ("never", "no"))
    assert examples_of({"prompt": "ask", "response": "say"}) == [example], "they change no split"
    for wrong in ("so", [1]):
        with pytest.raises(DataError, match="correct_answers: wrong type"):
            examples_of(row | {"correct_answers": wrong}, "file.jsonl", 3)
