"""Property: what a half-done training is taken up with, refused for, and found damaged by."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from rehearsal import PARTS, Order, copy, newest, part, standing, trace

from moesaic.errors import MemoryLimitError, NonFiniteError, RecipeError, WeightsError
from moesaic.files import lock, read_jsonl, read_manifest, versions
from moesaic.tensors.tensors import read_tensors

pytestmark = pytest.mark.slow

HALF_DONE = {"pretrain": "step:7:kill", "expert": "step:12:kill", "router": "step:9:kill"}
"""Where each verb is killed: the expert in the second rate of its grid."""


def half_done(verb: str, ram: Path, order: Order, ready: dict[str, Path]) -> Path:
    root = copy(ready[verb], ram / "half")
    assert order(verb, root, fault=HALF_DONE[verb])["status"] == -9
    return root


def warned(root: Path) -> str:
    told = root.with_name(root.name + ".warnings")
    text = told.read_text() if told.exists() else ""
    told.unlink(missing_ok=True)
    return text


# --- what is kept -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", PARTS)
def test_at_most_the_step_that_was_under_way_is_made_again(verb, ram, order, ready, unbroken):
    root = half_done(verb, ram, order, ready)
    done = {"pretrain": 6, "expert": 3, "router": 8}[verb]
    assert read_manifest(newest(root, verb))["state"]["step"] == done
    answer = order(verb, root, fault="step:9999:kill")
    total = sum(len(curve) for curve in unbroken[verb]["curves"].values())
    already = {"pretrain": 6, "expert": 11, "router": 8}[verb]
    assert answer["status"] == 0 and answer["visits"] == total - already
    assert trace(root, PARTS[verb]) == unbroken[verb]
    assert not warned(root)


def test_the_best_so_far_is_the_best_after_a_kill(ram, order, ready):
    # The rate rises to where the decay takes all of the adapter away.
    wild = ["train.lr=0.1", "train.evaluate_every=1", "train.weight_decay=10", "train.warmup=1"]
    whole, root = copy(ready["expert"], ram / "whole"), copy(ready["expert"], ram / "half")
    assert order("expert", whole, overrides=wild)["status"] == 0
    best = read_manifest(part(whole, "experts/adds"))["metrics"]["step"]
    assert best < 7, "it got worse and stayed so"
    assert order("expert", root, overrides=wild, fault="step:7:kill")["status"] == -9
    assert order("expert", root, overrides=wild)["status"] == 0
    assert trace(root, "experts/adds") == trace(whole, "experts/adds")


def test_between_saves_steps_are_made_again_and_logged_once(ram, order, ready, unbroken):
    root = copy(ready["pretrain"], ram / "half")
    often, seldom = "checkpoint_seconds=0", "checkpoint_seconds=1000"
    assert order("pretrain", root, fault="step:4:kill", overrides=[often])["status"] == -9
    assert order("pretrain", root, fault="step:5:kill", overrides=[seldom])["status"] == -9
    (log,) = (root / "metrics/base").iterdir()
    assert len(list(read_jsonl(log))) == 7 and read_manifest(newest(root, "pretrain"))["state"]["step"] == 3
    assert order("pretrain", root)["status"] == 0
    assert trace(root, "base") == unbroken["pretrain"]


def test_a_log_that_lost_rows_is_told(ram, order, ready):
    root = half_done("pretrain", ram, order, ready)
    (log,) = (root / "metrics/base").iterdir()
    log.write_bytes(b"")
    assert order("pretrain", root)["status"] == 0
    assert f"{log}: rows of the steps up to 6 are missing" in warned(root)


# --- what it is refused for -------------------------------------------------------------------------------------------

CHANGES = [
    ("pretrain", "seed=7", "seed", "0", "7"),
    ("pretrain", "workers=2", "workers", "1", "2"),
    ("pretrain", "base.pretrain.lr=0.02", "base.pretrain.lr", "0.01", "0.02"),
    ("pretrain", "base.pretrain.batch=3", "base.pretrain.batch", "2", "3"),
    ("pretrain", "base.pretrain.weight_decay=0.5", "base.pretrain.weight_decay", "0.0", "0.5"),
    ("pretrain", "base.vocab_size=301", "base.vocab_size", "300", "301"),
    ("expert", "seed=7", "seed", "0", "7"),
    ("expert", "train.batch=3", "train.batch", "2", "3"),
    ("expert", "train.length=40", "train.length", "48", "40"),
    ("expert", "train.accumulate=1", "train.accumulate", "2", "1"),
    ("expert", "train.steps=9", "train.steps", "8", "9"),
    ("expert", "train.lr=[0.01,0.03,0.05]", "train.lr[2]", None, "0.05"),
    ("expert", "experts.adds.train.clip=2", "train.clip", "1.0", "2.0"),
    ("expert", "experts.adds.rank=3", "experts.adds.rank", "2", "3"),
    ("expert", "router.prompt_tokens=9", "router.prompt_tokens", "64", "9"),
    ("expert", "experts.adds.data.validation=0.5", "data[0]", None, None),
    ("router", "seed=7", "seed", "0", "7"),
    ("router", "router.lr=0.02", "router.lr", "0.001", "0.02"),
    ("router", "router.dropout=0.1", "router.dropout", "0.5", "0.1"),
    ("router", "router.hidden=[8]", "router.hidden[0]", "16", "8"),
    ("router", "router.epochs=5", "router.epochs", "4", "5"),
]


@pytest.mark.parametrize(
    ("verb", "change", "field", "old", "new"),
    [
        change if place % 4 == 0 else pytest.param(*change, marks=pytest.mark.faults)
        for place, change in enumerate(CHANGES)
    ],
)
def test_with_other_settings_it_is_refused_by_their_name(verb, change, field, old, new, ram, order, ready):
    root = half_done(verb, ram, order, ready)
    answer = order(verb, root, overrides=[change])
    assert answer["status"] == RecipeError.exit_code
    told = f"this training was started with {old} and is now given {new}; go back to {old} to continue it, or"
    assert f"{field}: {'this training was started with' if old is None else told}" in answer["error"]
    name = PARTS[verb].rpartition("/")[2]
    assert f"or give --restart {name} to begin it anew" in answer["error"]
    assert order(verb, root, overrides=[change], restart=[name])["status"] == 0
    assert standing(part(root, PARTS[verb]))


def test_a_rate_that_is_not_tried_any_more_is_a_change_and_nothing_is_trained_before_it_is_refused(ram, order, ready):
    root = half_done("expert", ram, order, ready)
    answer = order("expert", root, overrides=["train.lr=0.05"], experts=["says", "adds"], fault="step:9999:kill")
    assert answer["status"] == 2 and "train.lr" in answer["error"]
    assert standing(part(root, "experts/says")) is None


def test_what_changes_no_bit_may_change(ram, order, ready, unbroken):
    root = half_done("expert", ram, order, ready)
    changed = [
        "checkpoint_seconds=5",
        "workers=2",
        "evaluate.limit=3",
        "experts.adds.keywords=[plus]",
        "router.epochs=1",
    ]
    assert order("expert", root, overrides=changed)["status"] == 0
    assert trace(root, "experts/adds") == unbroken["expert"]


def test_another_torch_is_refused(ram, order, ready, monkeypatch):
    root = half_done("pretrain", ram, order, ready)
    state = newest(root, "pretrain")
    manifest = json.loads((state / "manifest.json").read_text())
    manifest["inputs"]["torch"] = "1.0"
    from moesaic.files import digest

    body = {key: value for key, value in manifest.items() if key != "digest"}
    (state / "manifest.json").write_text(json.dumps(dict(body, digest=digest(body))))
    answer = order("pretrain", root)
    assert answer["status"] == 2 and "torch: this training was started with 1.0 and is now given" in answer["error"]


def test_there_is_no_restarting_what_nobody_trains(ram, order, ready):
    answer = order("expert", copy(ready["expert"], ram / "half"), restart=["add"])
    assert answer["status"] == 2 and "restart: no such training" in answer["error"]
    assert "did you mean 'adds'?" in answer["error"]


# --- what is damaged --------------------------------------------------------------------------------------------------


def flip(path: Path, dice: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    path.write_bytes(data)


def cut(path: Path, dice: random.Random) -> None:
    os.truncate(path, dice.randrange(path.stat().st_size - 1))


def blank(path: Path, dice: random.Random) -> None:
    """A page of zeros, as a failing disk gives it."""
    data = bytearray(path.read_bytes())
    start = dice.randrange(0, len(data), 4096)
    data[start : start + 4096] = bytes(len(data[start : start + 4096]))
    path.write_bytes(data)


def lose(path: Path, dice: random.Random) -> None:
    path.unlink()


DAMAGE: list[Callable[[Path, random.Random], None]] = [flip, cut, blank, lose]


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["state.safetensors", "manifest.json"])
def test_a_damaged_state_is_named_and_the_one_before_it_is_taken(name, damage, ram, order, ready, unbroken):
    root = half_done("expert", ram, order, ready)
    state = newest(root, "expert")
    damage(state / name, random.Random(name))
    strict = order("expert", copy(root, ram / "strict"), strict=True)
    assert strict["status"] == WeightsError.exit_code and name in strict["error"]
    assert order("expert", root)["status"] == 0
    told = warned(root)
    assert "damaged: " in told and name in told and "Resumes from the state saved before it" in told
    assert trace(root, "experts/adds") == unbroken["expert"]


def test_with_both_states_damaged_it_begins_anew_and_says_so(ram, order, ready, unbroken):
    root = half_done("pretrain", ram, order, ready)
    for state in versions(root / "checkpoints/base/lr-0.01"):
        flip(state / "state.safetensors", random.Random(3))
    assert order("pretrain", root)["status"] == 0
    assert warned(root).count("Resumes from the state saved before it, or else from the first step") == 2
    assert trace(root, "base") == unbroken["pretrain"]


@pytest.mark.parametrize("verb", PARTS)
def test_a_damaged_part_is_made_anew_with_a_warning_or_refused(verb, ram, order, ready, unbroken):
    root = copy(ready["done"], ram / "part")
    (file,) = part(root, PARTS[verb]).glob("*.safetensors")
    flip(file, random.Random(verb))
    answer = order(verb, root, strict=True)
    assert answer["status"] == WeightsError.exit_code and file.name in answer["error"]
    assert order(verb, root)["status"] == 0
    assert "damaged, to be made anew: " in (told := warned(root)) and file.name in told
    assert trace(root, PARTS[verb]) == unbroken[verb]


@pytest.mark.parametrize("trials", [300, pytest.param(10_000, marks=pytest.mark.faults)])
def test_every_flip_cut_and_blank_page_of_published_files_is_found(trials, ram, order, ready):
    root = copy(ready["done"], ram / "flipped")
    assert order("compose", root)["status"] == 0
    artefacts = [part(root, place).resolve() for place in PARTS.values()] + [(root / "mixture").resolve()]
    artefacts.append(newest(half_done("expert", ram, order, ready), "expert"))
    files = [(artefact, path) for artefact in artefacts for path in artefact.rglob("*") if path.is_file()]
    dice, found, same = random.Random(trials), 0, 0
    while found < trials:
        artefact, path = dice.choice(files)
        good = path.read_bytes()
        dice.choice([flip, cut, blank])(path, dice)
        if path.read_bytes().rstrip(b"\n") == good.rstrip(b"\n"):
            same += 1  # a page that was blank already, or the line break at a manifest's end
        else:
            with pytest.raises(WeightsError, match=path.name):
                read_manifest(artefact)
            found += 1
        path.write_bytes(good)
    print(f"{found} damages of {len(files)} files found, {same} changed nothing")


# --- what stops it ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize("verb", PARTS)
def test_a_loss_that_is_not_finite_names_its_rows_and_the_last_state_and_is_never_saved(
    verb, value, ram, order, ready, unbroken
):
    root = copy(ready[verb], ram / "nan")
    one_rate = ["train.lr=0.01"]
    answer = order(verb, root, fault=f"loss:6:{value}", overrides=one_rate)
    assert answer["status"] == NonFiniteError.exit_code
    assert f"the loss of step 6 is {value}" in answer["error"]
    source = {"pretrain": ".jsonl:", "expert": "adds.jsonl:", "router": ""}[verb]
    assert f"{source}" in answer["error"] and "lower lr" in answer["error"]
    state = newest(root, verb)
    assert str(state.parent.parent.name) in answer["error"] and read_manifest(state)["state"]["step"] == 5
    assert all(tensor.isfinite().all() for tensor in read_tensors(state / "state.safetensors").values())
    assert len(list(read_jsonl(next((root / "metrics" / PARTS[verb]).iterdir())))) == 5
    assert not (part(root, PARTS[verb])).exists()
    if verb != "expert":  # whose grid is another here
        assert order(verb, root, overrides=one_rate)["status"] == 0
        assert trace(root, PARTS[verb])["files"] == unbroken[verb]["files"]


def test_a_rate_that_diverges_has_lost_and_stays_so_when_taken_up(ram, order, ready):
    root = copy(ready["expert"], ram / "nan")
    assert order("expert", root, fault="loss:3:nan")["status"] == 0
    manifest = read_manifest(part(root, "experts/adds"))
    assert manifest["grid"]["0.01"] is None and manifest["lr"] == 0.03


def test_no_memory_says_which_knob_to_turn(ram, order, ready):
    answer = order("expert", copy(ready["expert"], ram / "memory"), fault="step:3:oom")
    assert answer["status"] == MemoryLimitError.exit_code
    assert "no memory for step 3; halve batch (now 2) and double accumulate (now 2)" in answer["error"]


def test_when_the_system_really_gives_no_more_memory_it_is_told_likewise(ram, order, ready):
    big = ["base.size=tiny", "base.pretrain.batch=64", "base.pretrain.length=128"]
    answer = order("pretrain", copy(ready["pretrain"], ram / "memory"), memory=1 << 25, overrides=big)
    assert answer["status"] == MemoryLimitError.exit_code, answer
    assert "no memory for step 1" in answer["error"] and "halve batch" in answer["error"]


def test_a_second_process_is_told_who_works_there(ram, order, ready):
    root = copy(ready["expert"], ram / "locked")
    with lock(root):
        answer = order("expert", root)
    assert answer["status"] == 2 and f"in use by process {os.getpid()}" in answer["error"]
    assert order("expert", root)["status"] == 0
