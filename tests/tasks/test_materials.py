"""The rows of a run: read once, found again by their content, and the same either way."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_runs import opened

from moesaic.data.stored_rows import StoredRows, name_of
from moesaic.errors import DataError
from moesaic.recipe import Recipe, parse
from moesaic.tasks import Run

RECIPE: dict[str, Any] = {
    "name": "small",
    "workers": 1,
    "bad_rows": "skip",
    "max_bad": 2,
    "base": {"size": "nano", "vocab_size": 300, "pretrain": {"steps": 2, "batch": 2, "length": 64, "lr": 1e-2}},
    "train": {"steps": 2, "batch": 2, "length": 64},
    "experts": {
        name: {"kind": "lora", "rank": 2, "data": {"train": f"{name}.jsonl", "test": f"{name}.test"}}
        for name in ("adds", "tells")
    },
    "router": {"kind": "centroid", "feature": "embedding_mean"},
    "evaluate": {"unseen": "unseen.jsonl"},
}


def write(path: Path, rows: list[dict], bad: int = 0) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{}\n" * bad)
    os.utime(path, (time.time() - 100, time.time() - 100))


def numbered(*numbers: int) -> list[dict]:
    return [{"prompt": f"{n} and one", "response": f"{n + 1}"} for n in numbers]


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    write(tmp_path / "adds.jsonl", numbered(*range(30)), bad=1)
    write(tmp_path / "adds.test", numbered(*range(40, 45)))
    write(tmp_path / "tells.jsonl", [*numbered(*range(50, 80)), *numbered(*range(40, 45))], bad=1)
    write(tmp_path / "tells.test", numbered(*range(90, 95)))
    write(tmp_path / "unseen.jsonl", [{"text": f"rain on day {n}"} for n in range(6)])
    return parse(RECIPE, source=tmp_path / "recipe.yaml")


class Start:
    """A run that has just started: `read` are the files that it has read."""

    def __init__(self, recipe: Recipe, root: Path):
        self.run: Run = opened(recipe, root)
        self.read = list[str]()

        def watch(path, rows):
            self.read.append(path.name)
            return rows

        self.run.materials.rejects.watch = watch
        self.found = self.run.materials.domains, self.run.materials.unseen, self.run.materials.files


def test_a_second_start_reads_no_file_of_rows_and_finds_the_same(recipe: Recipe, tmp_path: Path) -> None:
    first, second = (Start(recipe, tmp_path / "run") for _ in range(2))
    assert sorted(first.read) == ["adds.jsonl", "adds.test", "tells.jsonl", "tells.test", "unseen.jsonl"]
    assert second.read == [] and second.found == first.found
    for name, domain in first.found[0].items():
        again = second.found[0][name]
        assert again.digest == domain.digest == replace(domain, known=None).digest
        assert isinstance(again.train, StoredRows) and again.read == domain.read
    assert second.found[0]["tells"].dropped["train: in another domain's test"] >= 3
    assert second.run.materials.rejects.listed() == first.run.materials.rejects.listed()
    assert len(first.run.materials.rejects.listed()) == 2


def test_a_file_of_other_content_is_read_anew_and_no_other_one(recipe: Recipe, tmp_path: Path) -> None:
    first = Start(recipe, tmp_path / "run")
    write(tmp_path / "tells.jsonl", numbered(*range(50, 80), 99), bad=1)
    os.utime(tmp_path / "adds.jsonl", (1, 1))
    second = Start(recipe, tmp_path / "run")
    assert second.read == ["tells.jsonl", "tells.test"]
    digests = [{name: one.digest for name, one in start.found[0].items()} for start in (first, second)]
    assert digests[0]["adds"] == digests[1]["adds"] and digests[0]["tells"] != digests[1]["tells"]
    second.run.materials.prepared.tidy()
    assert Start(recipe, tmp_path / "run").read == []
    write(tmp_path / "tells.jsonl", [*numbered(*range(50, 80)), *numbered(*range(40, 45))], bad=1)
    assert Start(recipe, tmp_path / "run").read == ["tells.jsonl", "tells.test"]


def test_bad_rows_of_files_that_are_not_read_again_count(recipe: Recipe, tmp_path: Path) -> None:
    Start(recipe, tmp_path / "run")
    fewer = recipe.model_copy(update={"max_bad": 1})
    with pytest.raises(DataError, match="too many unusable rows"):
        Start(fewer, tmp_path / "run")
    with pytest.raises(DataError):
        Start(recipe.model_copy(update={"bad_rows": "stop"}), tmp_path / "run")


def test_rows_of_demos_stay_in_memory(recipe: Recipe, tmp_path: Path) -> None:
    demo = {**RECIPE, "experts": {"one": {"kind": "lora", "data": {"demo": "math"}}}, "evaluate": {"controls": []}}
    run = opened(parse(demo, source=tmp_path / "recipe.yaml"), tmp_path / "run")
    domain = run.materials.domains["one"]
    assert isinstance(domain.train, list) and name_of(domain.test) == name_of([*domain.test])
    assert not (tmp_path / "run" / "rows").exists()
