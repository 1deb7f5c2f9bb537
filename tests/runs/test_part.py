"""Parts of a run are made in the order of their needs: finished ones are skipped, changed ones made anew."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from small_kinds import fill, recipe_in
from small_runs import bench_of, opened

from moesaic import stages
from moesaic.errors import RecipeError, StorageError
from moesaic.files import read_manifest, write_manifest
from moesaic.recipe import Recipe
from moesaic.runs.directory import RunDir
from moesaic.runs.jobs import Jobs, Report
from moesaic.runs.part import Part, Work, ensure, graph_of
from moesaic.runs.progress import Silent


class Told(Silent):
    """A Progress that remembers."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.ended: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.notes.append(text)

    def end(self, task: str, text: str) -> None:
        self.ended.append(task)


class Pool(Jobs):
    """A pool of one process that remembers what is sent together."""

    def __init__(self, told: Told) -> None:
        super().__init__(1, told)
        self.sent: list[list[str]] = []

    def run(self, work: Mapping[str, Callable[[Report], Any]]) -> dict[str, Any]:
        self.sent += [[*work]] if work else []
        return super().run(work)


class Toy(Part):
    """A file with a text and the texts of the toys that it is made from."""

    stage = "toy"

    def __init__(self, run: RunDir, name: str, text: str, *needs: Path, steps: int = 0, sent: bool = True):
        super().__init__(run, run.root / "toys" / name)
        self.name, self.text, self.needed, self.long, self.sent = name, text, needs, steps, sent

    @property
    def steps(self) -> int:
        return self.long

    def needs(self) -> tuple[Path, ...]:
        return self.needed

    def inputs(self) -> dict[str, Any]:
        return {"text": self.text, "parts": [self.run.identity(at) for at in self.needed]}

    def work(self) -> Work | None:
        return partial(write_toy, self.run, self.at, self.key, self.text) if self.sent else None

    def make(self, report: Report) -> None:
        write_toy(self.run, self.at, self.key, self.text, report)


def write_toy(run: RunDir, at: Path, key: str, text: str, report: Report) -> None:
    """Publish a toy."""

    def write(folder: Path) -> None:
        (folder / "text").write_text(text)
        write_manifest(folder, {"kind": "toy", "stage_key": key})

    run.publish(at, write, len(text))
    report.begin(1)
    report.end("written")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("kinds"))


@pytest.fixture
def run(place: Path, tmp_path: Path) -> RunDir:
    return RunDir(recipe_in(place, "ffn"), tmp_path / "run")


def diamond(run: RunDir, bottom: str = "of clay", left: str = "of wood") -> list[Part]:
    """Four toys, the last first: two in the middle need the bottom, and the top needs these two."""
    toys = run.root / "toys"
    return [
        Toy(run, "top", "of glass", toys / "left", toys / "right"),
        Toy(run, "left", left, toys / "bottom", steps=1),
        Toy(run, "right", "of stone", toys / "bottom", steps=2),
        Toy(run, "bottom", bottom),
    ]


def made(parts: list[Part], graph: list[Part] | None = None) -> tuple[Told, Pool]:
    """What is said and what is sent when these parts are made."""
    told = Told()
    with Pool(told) as jobs:
        ensure(graph_of(graph or parts), parts, told, jobs)
    return told, jobs


def test_parts_are_made_after_those_that_they_need_whatever_order_they_are_given_in(run: RunDir):
    told, _ = made(diamond(run))
    assert told.ended == ["bottom", "right", "left", "top"] and not told.notes
    for part in diamond(run):
        assert read_manifest(part.at)["stage_key"] == part.key


def test_independent_parts_are_sent_together_the_longest_first(run: RunDir):
    _, jobs = made(diamond(run))
    assert jobs.sent == [["bottom"], ["right", "left"], ["top"]]


def test_a_part_without_work_is_made_in_this_process(run: RunDir):
    told, jobs = made([Toy(run, "here", "of air", sent=False), Toy(run, "there", "of air")])
    assert jobs.sent == [["there"]] and sorted(told.ended) == ["here", "there"]


class Herd(Toy):
    """A toy that is made together with all others of its kind."""

    def together(self) -> Any:
        return write_all


def write_all(parts: Any, told: Told, jobs: Jobs) -> None:
    for part in parts:
        part.make(jobs.report(f"{part.name} of {len(parts)}"))


def test_parts_that_are_made_together_are_handed_to_their_function_in_one_call(run: RunDir):
    told, jobs = made([Herd(run, "one", "a"), Toy(run, "other", "b"), Herd(run, "two", "c")])
    assert told.ended == ["one of 2", "two of 2", "other"] and jobs.sent == [["other"]]


def test_finished_parts_are_skipped_and_reported_and_their_states_dropped(run: RunDir):
    made(diamond(run))
    left = run.root / "toys" / "left"
    (run.states_at(left) / "lr-0.1").mkdir(parents=True)
    versions = {part.name: part.at.resolve() for part in diamond(run)}
    told, jobs = made(diamond(run))
    assert sorted(told.notes) == [f"{name}: finished, skipped" for name in ("bottom", "left", "right", "top")]
    assert not told.ended and not jobs.sent and not run.states_at(left).exists()
    assert {part.name: part.at.resolve() for part in diamond(run)} == versions


def test_a_changed_part_is_made_anew_with_all_that_depends_on_it_and_nothing_else(run: RunDir):
    made(diamond(run))
    told, _ = made(diamond(run, left="of straw"))
    assert told.ended == ["left", "top"]
    anew = "made anew, because its settings or inputs changed (name=OTHER keeps the old run)"
    skipped = ["bottom: finished, skipped", "right: finished, skipped"]
    assert sorted(told.notes) == sorted([*skipped, f"left: {anew}", f"top: {anew}"])
    assert (run.root / "toys/left/text").read_text() == "of straw"
    told, _ = made(diamond(run, bottom="of sand", left="of straw"))
    assert told.ended == ["bottom", "right", "left", "top"]
    assert sorted(told.notes) == [f"{name}: {anew}" for name in ("bottom", "left", "right", "top")]


def test_a_damaged_part_is_reported_and_made_anew(run: RunDir):
    made(diamond(run))
    (run.root / "toys/right/text").write_text("of snow")
    told, _ = made(diamond(run))
    assert told.ended == ["right"] and any("damaged, to be made anew" in note for note in told.notes)
    assert not any("right: made anew" in note for note in told.notes)
    assert (run.root / "toys/right/text").read_text() == "of stone"


def test_a_need_that_does_not_exist_and_is_not_made_beside_it_is_refused_by_name(run: RunDir):
    top, left, right, bottom = diamond(run)
    with pytest.raises(RecipeError, match=r"toys/bottom: there is no bottom yet"):
        made([left, right], [top, left, right, bottom])
    assert not (run.root / "toys").exists(), "nothing was made"
    made([bottom])
    told, _ = made([left, right], [top, left, right, bottom])
    assert told.ended == ["right", "left"]


def test_a_needed_folder_that_no_part_makes_is_refused_unless_it_exists(run: RunDir):
    stone = run.root / "quarry"
    with pytest.raises(RecipeError, match=r"quarry: 'statue' needs a folder that does not exist, and no part"):
        made([Toy(run, "statue", "of stone", stone)])
    assert not (run.root / "toys").exists(), "nothing was made"
    stone.mkdir(parents=True)
    write_manifest(stone, {"kind": "stone"})
    told, _ = made([Toy(run, "statue", "of stone", stone)])
    assert told.ended == ["statue"]


def test_parts_are_the_same_by_their_paths(run: RunDir, monkeypatch: pytest.MonkeyPatch):
    required: list[Part] = []
    monkeypatch.setattr(Part, "require_needs", lambda self, needed, progress: required.extend(needed))
    told, _ = made(diamond(run), diamond(run))
    assert told.ended == ["bottom", "right", "left", "top"]
    assert not required, "a part that is made anyway is not required as one of the other graph"


def test_parts_that_need_each_other_are_refused_before_they_are_made(run: RunDir):
    toys = run.root / "toys"
    hen, egg = Toy(run, "hen", "", toys / "egg"), Toy(run, "egg", "", toys / "hen")
    with pytest.raises(ValueError, match="parts that need each other: hen, egg"):
        made([hen, egg])
    assert not toys.exists()


# --- one more part beside those of a run ------------------------------------------------------------------------------


@pytest.fixture
def trained(place: Path, tmp_path: Path) -> tuple[Recipe, Path]:
    """A run in which one expert of two is trained."""
    recipe, root = recipe_in(place, "ffn"), tmp_path / "run"
    stages.train_expert(recipe, root, ["sums"])
    return recipe, root


def test_an_arm_an_export_or_a_benchmark_is_one_more_part(trained: tuple[Recipe, Path]):
    recipe, root = trained
    bench = bench_of(opened(recipe, root))
    own = [part for parts in bench.parts.values() for part in parts]
    export = Toy(bench.run.dir, "export", "of an expert", bench.run.dir.part_at("sums"))
    before = {path.relative_to(root) for path in root.rglob("*")}
    told, _ = made([export], [*own, export])
    assert told.ended == ["export"] and not told.notes
    after = {path.relative_to(root) for path in root.rglob("*")}
    assert before <= after and {path.parts[0] for path in after - before} == {"toys"}, "the others stay as they are"
    sums = next(part for part in own if part.name == "sums")
    told, jobs = made([export, sums], [*own, export])
    assert told.notes == ["sums: finished, skipped", "export: finished, skipped"] and not jobs.sent


def test_one_more_part_is_refused_without_the_part_that_it_needs_with_the_command_that_makes_it(
    trained: tuple[Recipe, Path],
):
    recipe, root = trained
    bench = bench_of(opened(recipe, root))
    own = [part for parts in bench.parts.values() for part in parts]
    export = Toy(bench.run.dir, "export", "of an expert", bench.run.dir.part_at("birds"))
    with pytest.raises(RecipeError, match=r"no expert 'birds' yet; train it first: .* train-expert .* --expert birds"):
        made([export], [*own, export])
    assert not (root / "toys").exists()


def test_a_part_is_not_made_anew_under_a_half_done_training_that_needs_it(run: RunDir):
    base, after = Toy(run, "base", "one"), Toy(run, "after", "two", run.root / "toys" / "base")
    made([base])
    state = run.states_at(after.at) / "lr-0.1" / "state"
    state.mkdir(parents=True)
    (state / "manifest.json").write_text("{}")
    changed = Toy(run, "base", "other")
    with pytest.raises(
        RecipeError, match="base: 'after' is half-done, and .* have changed; .* --restart after to begin"
    ):
        made([changed], [changed, after])
    assert (base.at / "text").read_text() == "one", "nothing was made"
    run.forget(after.at)
    made([changed], [changed, after])
    assert (base.at / "text").read_text() == "other"


def test_what_moesaic_did_not_publish_is_refused_before_anything_is_made(run: RunDir):
    part = Toy(run, "one", "text")
    part.at.parent.mkdir(parents=True)
    part.at.write_text("mine")
    with pytest.raises(StorageError, match="moesaic did not publish this path and will not replace it"):
        made([part])
    assert part.at.read_text() == "mine" and [*part.at.parent.iterdir()] == [part.at]
