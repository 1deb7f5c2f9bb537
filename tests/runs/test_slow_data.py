"""Property: reading, encoding and the search for duplicates show how far they are where they take their time."""

import json
from pathlib import Path
from typing import Any

import pytest
from small_kinds import fill, recipe_in

from moesaic.runs import progress
from moesaic.runs.progress import EVERY, Silent, watched
from moesaic.stages import verbs


class Clock:
    """A clock that is `pace` seconds further at each look."""

    def __init__(self, pace: float) -> None:
        self.now, self.pace = 0.0, pace

    def monotonic(self) -> float:
        self.now += self.pace
        return self.now


class Seen(Silent):
    """A Progress that remembers the steps of every task, and which have ended."""

    def __init__(self) -> None:
        self.steps: dict[str, int] = {}
        self.rows: dict[str, list[int]] = {}
        self.ended: list[str] = []

    def begin(self, task: str, steps: int) -> None:
        assert task not in self.steps or task in self.ended
        self.steps[task] = steps

    def row(self, task: str, row: dict[str, Any]) -> None:
        self.rows.setdefault(task, []).append(row["step"])

    def end(self, task: str, text: str) -> None:
        self.ended.append(task)

    def tell(self, kind: str, task: str, what: Any) -> None:
        getattr(self, kind)(task, what)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "time", Clock(EVERY))


def test_what_is_quick_is_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "time", Clock(EVERY / 1000))
    seen = Seen()
    assert [*watched(range(100), 100, "quick", seen.tell)] == [*range(100)]
    assert not seen.steps and not seen.ended


def test_items_are_passed_on_and_counted_by_their_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "time", Clock(EVERY / 2))
    seen = Seen()
    assert [*watched([3, 1, 2, 4, 9], 12, "slow", seen.tell, size=float)] == [3, 1, 2, 4, 9]
    assert seen.steps == {"slow": 12} and seen.rows == {"slow": [4, 10]} and seen.ended == ["slow"]


@pytest.mark.usefixtures("slow")
def test_an_iteration_that_is_left_early_ends_its_task() -> None:
    seen = Seen()
    for item in watched(range(9), 9, "left", seen.tell):
        if item == 4:
            break
    assert seen.rows == {"left": [1, 2, 3, 4]} and seen.ended == ["left"]


@pytest.mark.usefixtures("slow")
def test_every_data_stage_of_a_run_shows_how_far_it_is(tmp_path: Path) -> None:
    place, seen = fill(tmp_path), Seen()
    (place / "unseen.jsonl").write_text(json.dumps({"text": "a wren in the rain sings once more"}) + "\n")
    recipe = recipe_in(place, "ffn", "train.steps=1", "evaluate.unseen=[unseen.jsonl]", "evaluate.controls=[oracle]")
    verbs.run(recipe, tmp_path / "run", seen)
    files = {f"{domain}_{split}.jsonl" for domain in ("sums", "birds") for split in ("train", "test")}
    assert {f"reading {name}" for name in {*files, "unseen.jsonl"}} <= seen.steps.keys()
    assert {"duplicates", "encoding sums", "encoding birds", "encoding unseen"} <= seen.steps.keys()
    for name in files:
        size = (place / name).stat().st_size
        assert seen.steps[f"reading {name}"] == size // 1000 and seen.rows[f"reading {name}"][-1] == size // 1000
    assert seen.rows["encoding sums"][:6] == [1, 2, 3, 4, 5, 6] and seen.steps["encoding sums"] == 6
    rows = json.loads((tmp_path / "run" / "data.json").read_text())["rows"]
    assert seen.steps["duplicates"] == seen.rows["duplicates"][-1] == sum(rows.values())
    assert {*seen.steps} <= {*seen.ended}
    trained = seen.rows["sums"]
    assert trained[:3] == [1, 2, 3], "an expert's own encoding has its name"
