"""Rounds of a continuous training: what they keep, what they leave, and rows that are appended while it runs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_runs import Told, bench_of, opened, two_experts

import moesaic
from moesaic import stages
from moesaic.errors import DataError, RecipeError
from moesaic.files import read_jsonl, read_manifest, versions
from moesaic.recipe import Recipe, parse
from moesaic.stages.continuous import next_of
from moesaic.stages.standing import State, Turn, read_state

RECIPE = two_experts(
    {"steps": 12, "batch": 2, "length": 32},
    {"steps": 4, "batch": 2, "length": 48},
    {"epochs": 3, "abstain": "off"},
    continuous={"steps": 4, "patience": 2},
)


def row(name: str, n: int) -> dict[str, str]:
    if name == "adds":
        return {"prompt": f"What is {n} + {n % 7}?", "response": f"It is {n + n % 7}."}
    return {"text": f"Once {n} owls and {n % 5} crows sat in a tree, and the wind sang all day long."}


def append(folder: Path, name: str, numbers: range, split: str = "") -> None:
    with (folder / f"{name}{split}.jsonl").open("a") as file:
        file.write("".join(json.dumps(row(name, n)) + "\n" for n in numbers))


def recipe_in(folder: Path, *overrides: str) -> Recipe:
    return parse(RECIPE, overrides, folder / "recipe.yaml")


class Listener(Told):
    """Remembers notes and warnings, and refuses reports of a task that was not begun or is not ended."""

    def __init__(self) -> None:
        super().__init__()
        self.running = set[str]()

    def begin(self, task: str, steps: int) -> None:
        assert task not in self.running
        self.running.add(task)

    def row(self, task: str, row: dict[str, Any]) -> None:
        assert task in self.running

    def end(self, task: str, text: str) -> None:
        self.running.remove(task)


def go_on(folder: Path, rounds: int, *overrides: str) -> Listener:
    told = Listener()
    stages.train_expert(recipe_in(folder, *overrides), folder / "run", [], told, continuous=True, rounds=rounds)
    assert not told.running
    return told


def lines(folder: Path) -> list[dict[str, Any]]:
    return [line for _, line in read_jsonl(folder / "run/continuous/rounds.jsonl")]


def state_of(folder: Path, *overrides: str) -> State:
    state = read_state(opened(recipe_in(folder, *overrides), folder / "run").dir)
    assert state
    return state


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts, and a run after three rounds."""
    folder = tmp_path_factory.mktemp("continuous")
    for name in ("adds", "says"):
        append(folder, name, range(40))
        append(folder, name, range(50, 58), "_test")
    stages.pretrain(recipe_in(folder), folder / "run", Told())
    go_on(folder, 3)
    return folder


@pytest.fixture
def copy(begun: Path, tmp_path: Path) -> Callable[[], Path]:
    return lambda: Path(shutil.copytree(begun, tmp_path / "copy", symlinks=True))


def test_experts_take_turns_and_only_a_clear_gain_is_kept(begun):
    assert [line["expert"] for line in lines(begun)] == ["adds", "says", "adds"]
    for line in lines(begun):
        clear = line["difference"][2] < 0
        assert line["outcome"] == ("kept" if clear and not line["worse"] else line["outcome"])
        assert clear or line["outcome"] == "no clear gain"
    assert "kept" in [line["outcome"] for line in lines(begun)]


def test_a_round_that_is_kept_is_published_and_one_that_is_not_changes_no_weight(begun, copy):
    folder = copy()
    while lines(folder)[-1]["outcome"] == "kept" or len(lines(folder)) == 3:
        before = {name: weights(folder, name) for name in ("adds", "says")}
        go_on(folder, len(lines(folder)) + 1)
        line = lines(folder)[-1]
        changed = [name for name in before if weights(folder, name) != before[name]]
        assert changed == ([line["expert"]] if line["outcome"] == "kept" else [])
        assert len(lines(folder)) < 20, "every round was kept"


def weights(folder: Path, name: str) -> str:
    """The hash of an expert's tensors."""
    files = read_manifest(folder / "run/experts" / name / "best")["files"]
    return str(next(facts["sha256"] for file, facts in files.items() if file.endswith(".safetensors")))


def router_in(folder: Path) -> str:
    """The hash of the router's tensors."""
    return read_manifest(folder / "run/router")["files"]["router.safetensors"]["sha256"]


def test_what_stands_is_current_verified_and_one_best_for_each_expert(begun):
    recipe, root = recipe_in(begun), begun / "run"
    run = opened(recipe, root)
    parts = bench_of(run).parts
    assert all(part.finished(Told()) for part in [*parts["experts"][:2], parts["router"][0], *parts["mixture"]])
    assert [len(versions(root / "experts" / name / "best")) for name in recipe.experts] == [1, 1]
    assert {one["name"] for one in stages.verify_expert(recipe, root, [])} == {"adds", "says"}
    assert moesaic.load(root).generate("What is 1 + 1?", max_new_tokens=2).routing.chosen in recipe.experts


def test_no_domain_is_worse_than_at_its_start(begun):
    for line in lines(begun):
        if line["outcome"] == "kept":
            assert all(some["since_start"][1] <= 0 or some["difference"][0] <= 0 for some in line["domains"].values())


def test_moments_go_on_with_the_expert_and_the_rate_halves_with_every_miss(begun):
    state, told = state_of(begun), lines(begun)
    rates = {name: float(state.experts[name].trial) for name in state.experts}
    misses = dict.fromkeys(rates, 0)
    for line in told:
        assert line["lr"] == rates[line["expert"]] / 2 ** misses[line["expert"]]
        misses[line["expert"]] = 0 if line["outcome"] == "kept" else misses[line["expert"]] + 1
    assert misses == {name: turn.misses for name, turn in state.experts.items()}
    from safetensors.torch import load_file

    for name, turn in state.experts.items():
        steps = {float(value) for key, value in load_file(state.tensors[name]).items() if key.endswith(".step")}
        kept = sum(line["outcome"] == "kept" for line in told if line["expert"] == name)
        assert steps == ({4.0 * kept} if kept else set()) and bool(turn.kept) == bool(kept)


def test_an_expert_rests_after_misses_and_all_rest_in_the_end():
    turns = {"a": Turn("0.01", misses=2), "b": Turn("0.01", misses=1), "c": Turn("0.01")}
    state = State(5, "b", turns, {}, {}, {}, {}, None, {})
    assert next_of(state, ["a", "b", "c"], 2) == "c" and next_of(state, ["a", "b"], 2) == "b"
    assert next_of(state, ["a", "b", "c"], 3) == "c" and next_of(state, ["a"], 2) is None


def test_rows_that_are_appended_are_used_and_no_other_row_moves(copy):
    folder = copy()
    old, before = state_of(folder), opened(recipe_in(folder), folder / "run").materials.domains
    router = read_manifest(folder / "run/router")["stage_key"]
    append(folder, "adds", range(60, 90))
    append(folder, "says", range(60, 62), "_test")
    told = go_on(folder, 4)
    assert "rows were added: adds, says" in told.notes
    after, run = state_of(folder), opened(recipe_in(folder), folder / "run")
    assert old.rows["adds"] == {"train": [40], "test": [8]} and after.rows["adds"] == {"train": [70], "test": [8]}
    for name, domain in run.materials.domains.items():
        for split in ("train", "validation", "test"):
            assert {e.group for e in getattr(before[name], split)} <= {e.group for e in getattr(domain, split)}
    assert sum(lines(folder)[-1]["rows"]["adds"].values()) == 70 and lines(folder)[-1]["rows"]["says"]["train"] < 40
    assert read_manifest(folder / "run/router")["stage_key"] != router
    parts = bench_of(run).parts
    assert all(part.finished(Told()) for part in [*parts["experts"][:2], parts["router"][0], *parts["mixture"]])


def test_a_row_that_is_being_written_is_left_for_later(copy):
    folder = copy()
    whole = json.dumps(row("adds", 70)) + "\n"
    with (folder / "adds.jsonl").open("a") as file:
        file.write(whole[:20])
    told = go_on(folder, 4)
    assert any("still being written" in note for note in told.notes)
    assert state_of(folder).rows["adds"]["train"] == [40]
    with (folder / "adds.jsonl").open("a") as file:
        file.write(whole[20:])
    go_on(folder, 5)
    assert state_of(folder).rows["adds"]["train"] == [41]


def test_a_row_that_was_learned_from_cannot_be_appended_to_what_is_judged_on(copy):
    folder = copy()
    append(folder, "adds", range(3), "_test")
    with pytest.raises(DataError, match="move a row of 'adds' out of train: adds.jsonl:[123], now in test"):
        go_on(folder, 4)


def test_rows_that_change_are_refused(copy):
    folder = copy()
    text = (folder / "adds.jsonl").read_text()
    (folder / "adds.jsonl").write_text(text.replace("What is 3 +", "What was 3 +"))
    with pytest.raises(DataError, match="rows of 'adds' that were read before have changed"):
        go_on(folder, 4)


def test_other_keys_of_an_expert_are_refused_by_name(begun):
    with pytest.raises(RecipeError, match=r"rank.*'adds' is trained continuously with 2 and is now given 4"):
        go_on(begun, 4, "experts.adds.rank=4")


def test_only_experts_at_level_sequence_and_no_control(begun):
    recipe = recipe_in(begun)
    with pytest.raises(RecipeError, match="only experts are trained continuously"):
        stages.train_expert(recipe, begun / "run", ["joint"], Told(), continuous=True, rounds=4)


def test_a_domain_joins_and_leaves_and_the_others_go_on(copy):
    folder = copy()
    for split, numbers in (("", range(40)), ("_test", range(50, 58))):
        made = [{"prompt": f"Name {n}", "response": f"The name is {n * n}."} for n in numbers]
        (folder / f"names{split}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in made))
    before, router = {name: weights(folder, name) for name in ("adds", "says")}, router_in(folder)
    third = "experts.names={kind: lora, rank: 2, data: {train: names.jsonl, test: names_test.jsonl}}"
    go_on(folder, 3, third)
    state = state_of(folder, third)
    assert list(state.experts) == ["adds", "says", "names"] and set(state.start) == {"adds", "says", "names"}
    assert {name: weights(folder, name) for name in before} == before and state.round == 3
    assert set(moesaic.load(folder / "run").names) == {"adds", "says", "names"} and router_in(folder) != router
    go_on(folder, 3)
    assert list(state_of(folder).experts) == ["adds", "says"]
    assert {name: weights(folder, name) for name in before} == before and router_in(folder) == router


def test_a_router_that_learns_from_the_experts_is_judged_as_it_would_be(copy):
    folder = copy()
    go_on(folder, 4, "router.loss.task=1.0")
    run = opened(recipe_in(folder, "router.loss.task=1.0"), folder / "run")
    assert bench_of(run).parts["router"][0].finished(Told())
    assert not (folder / "run/continuous/draft").exists()
