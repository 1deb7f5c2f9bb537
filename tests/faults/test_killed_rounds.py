"""Property: killed or told to stop at any moment, a continuous training makes the same rounds and the same bytes."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rehearsal import Order, copy

from moesaic.files import read_jsonl, read_manifest, versions
from moesaic.generate.loaded import load

ROUNDS, NAMES = 3, ("adds", "says")
SETTINGS = ["continuous.steps=3", "train.steps=2", "checkpoint_seconds=0"]
LOG = "continuous/rounds.jsonl"


def left(root: Path) -> dict[str, Any]:
    """All that the rounds leave, without times: the log, the state, and the files of every part."""
    parts = {"state": root / "continuous/state", "router": root / "router", "mixture": root / "mixture"}
    parts |= {name: root / "experts" / name / "best" for name in NAMES}
    manifests = {name: read_manifest(folder) for name, folder in parts.items()}
    files = {
        name: {file: facts for file, facts in manifest["files"].items() if file.endswith(".safetensors")}
        for name, manifest in manifests.items()
    }
    rounds = [timeless(row) for _, row in read_jsonl(root / LOG)]
    state = {key: value for key, value in manifests["state"].items() if key not in ("files", "line")}
    keys = {name: manifest.get("stage_key") for name, manifest in manifests.items()}
    assert [row["round"] for row in rounds] == [*range(1, ROUNDS + 1)]
    assert timeless(manifests["state"]["line"]) == rounds[-1]
    assert not (root / "checkpoints").exists() and not (root / "continuous/draft").exists()
    return {"files": files, "rounds": rounds, "state": state, "keys": keys}


def timeless(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "timing"}


def sound(root: Path) -> None:
    """Whatever happened, one best of each expert stands, and no row of the log is torn or doubled."""
    for name in NAMES:
        at = root / "experts" / name / "best"
        read_manifest(at)
        assert versions(at)[0] == at.resolve()
    if (root / LOG).is_file():
        told = [row["round"] for _, row in read_jsonl(root / LOG)]
        assert told == [*range(1, len(told) + 1)]


@pytest.fixture(scope="module")
def begun(ram: Path, order: Order, ready: dict[str, Path]) -> Path:
    """A run directory whose experts, router and mixture stand, before the first round."""
    root = copy(ready["done"], ram / "begun")
    assert order("rounds", root, rounds=0, overrides=SETTINGS)["status"] == 0
    return root


@pytest.fixture(scope="module")
def undisturbed(ram: Path, order: Order, begun: Path) -> tuple[dict[str, Any], int, float]:
    """What three rounds leave, how often they change the disk, and how long they take."""
    root = copy(begun, ram / "undisturbed")
    answer = order("rounds", root, rounds=ROUNDS, overrides=SETTINGS, fault="disk:1000000:kill")
    assert answer["status"] == 0, answer
    return left(root), answer["visits"], answer["seconds"]


def go_on(order: Order, root: Path, **how: Any) -> dict[str, Any]:
    return order("rounds", root, rounds=ROUNDS, overrides=SETTINGS, **how)


def drawn(count: int, most: int) -> Iterator[int]:
    dice = random.Random(f"{count}")
    return (dice.randrange(1, most + 1) for _ in range(count))


@pytest.mark.slow
@pytest.mark.parametrize("kills", [6, pytest.param(150, marks=pytest.mark.faults)])
def test_killed_at_any_change_of_the_disk_the_rounds_are_the_same(kills, ram: Path, order, begun, undisturbed):
    expected, changes, _ = undisturbed
    root = copy(begun, ram / "killed")
    ended = 0
    for visit in drawn(kills, changes):
        answer = go_on(order, root, fault=f"disk:{visit}:kill")
        assert answer["status"] in (0, -9), answer
        sound(root)
        if answer["status"] == 0:
            assert left(root) == expected
            copy(begun, root)
            ended += 1
    assert go_on(order, root)["status"] == 0 and left(root) == expected
    print(f"{kills} kills, {changes} changes of the disk in {ROUNDS} rounds, {ended + 1} ends, all the same")


@pytest.mark.slow
@pytest.mark.parametrize("kills", [3, pytest.param(100, marks=pytest.mark.faults)])
def test_killed_at_any_time_the_rounds_are_the_same(kills, ram: Path, order, begun, undisturbed):
    expected, _, seconds = undisturbed
    root, dice = copy(begun, ram / "killed-in-time"), random.Random(kills)
    for _ in range(kills):
        answer = go_on(order, root, signals={9: dice.uniform(0, seconds)})
        assert answer["status"] in (0, -9), answer
        sound(root)
        if answer["status"] == 0:
            assert left(root) == expected
            copy(begun, root)
    assert go_on(order, root)["status"] == 0 and left(root) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("name", "status"), [("int", 130), ("term", 143)])
def test_a_signal_ends_a_round_cleanly(name, status, ram: Path, order, begun, undisturbed):
    root = copy(begun, ram / "signalled")
    assert go_on(order, root, fault=f"step:5:{name}")["status"] == status
    sound(root)
    assert len([*read_jsonl(root / LOG)]) == 1 and not list(root.rglob(".new-*"))
    assert go_on(order, root)["status"] == 0 and left(root) == undisturbed[0]


@pytest.mark.slow
def test_a_torn_row_of_the_log_is_written_again(ram: Path, order, begun, undisturbed):
    root = copy(begun, ram / "torn")
    assert order("rounds", root, rounds=2, overrides=SETTINGS)["status"] == 0
    log = root / LOG
    log.write_bytes(log.read_bytes()[:-30])
    assert go_on(order, root)["status"] == 0 and left(root) == undisturbed[0]


@pytest.mark.slow
def test_of_a_damaged_state_the_one_before_it_is_taken(ram: Path, order, begun, undisturbed):
    root = copy(begun, ram / "damaged")
    assert order("rounds", root, rounds=2, overrides=SETTINGS)["status"] == 0
    newest = (root / "continuous/state").resolve() / "manifest.json"
    newest.write_bytes(newest.read_bytes()[:-40])
    assert go_on(order, root, strict=True)["status"] != 0
    assert go_on(order, root)["status"] == 0 and left(root) == undisturbed[0]
    assert "Resumes from the state before it" in root.with_name("damaged.warnings").read_text()


@pytest.mark.slow
def test_what_stands_after_a_kill_answers(ram: Path, order, begun, undisturbed):
    root = copy(begun, ram / "answers")
    go_on(order, root, fault=f"disk:{undisturbed[1] // 2}:kill")
    assert load(root / "mixture").generate("What is 1 + 1?", max_new_tokens=2).routing.chosen in NAMES
