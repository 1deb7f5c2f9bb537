"""Tests of the study as a document: defaults, and errors at their places."""

from pathlib import Path

import pytest

from moesaic.errors import RecipeError
from moesaic.lab.study import Study, read_study

GOOD = """\
name: heads
data: [a.jsonl, {path: b.jsonl, limit: 9}]
size: nano
depths: [2, 4, 8]
arms:
  dense: {}
  again: {arm: dense, redraw: 100, depths: [2]}
  head_mixer: {}
train: {steps: 100, length: 64}
sweep: {rates: [1e-3, 2e-3, 4e-3], depths: [2, 8]}
"""


def read(tmp_path: Path, text: str = GOOD, *overrides: str) -> Study:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    return read_study(path, overrides)[0]


def test_a_study_is_read_with_its_defaults_and_overrides(tmp_path: Path) -> None:
    study = read(tmp_path, GOOD, "train.steps=200", "seeds=2")
    assert study.reference == "dense" and study.train.ends == [80, 140, 200]
    assert study.drawn == [0, 1] and study.sweep_seed == 2
    assert [study.arm_of(name) for name in study.arms] == ["dense", "dense", "head_mixer"]
    assert study.depths_of("again") == [2] and study.depths_of("dense") == [2, 4, 8]
    assert study.resolve("a.jsonl") == tmp_path / "a.jsonl"


def test_a_depth_takes_the_rate_of_the_nearest_that_was_swept(tmp_path: Path) -> None:
    study = read(tmp_path)
    assert [study.swept_for("dense", depth) for depth in (2, 4, 8)] == [2, 2, 8]
    assert study.swept_for("again", 2) == 2
    assert read(tmp_path, GOOD.replace(", depths: [2, 8]", "")).swept == [2]


def test_the_schedule_of_every_segment_is_one_part_of_the_same_training(tmp_path: Path) -> None:
    train = read(tmp_path).train
    stable, decaying = train.to(32, 1e-3, decays=False), train.to(40, 1e-3, decays=True)
    assert stable.warmup * stable.steps == decaying.warmup * decaying.steps == pytest.approx(5.0)
    assert (stable.decay, decaying.decay) == (0.0, 0.2)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("size: nano", "size: nanno", "study.yaml:3: size: unknown size; expected one of nano"),
        ("size: nano", "size: nano\nseedz: 3", "study.yaml:4: seedz: unknown key; did you mean .seeds?"),
        ("{arm: dense,", "{arm: dens,", "study.yaml:7: arms.again.arm: unknown arm"),
        ("  dense: {}", "  densest: {}", "study.yaml:6: arms.densest: unknown arm"),
        ("depths: [2, 8]", "depths: 5", r"study.yaml:10: sweep.depths(\[0\])?: not a depth of this study"),
        ("4e-3", "5e-3", r"study.yaml:10: sweep.rates\[2\]: not evenly apart; expected 2 times"),
        ("[1e-3, 2e-3, 4e-3]", "[1e-3, 2e-3]", "sweep.rates: wrong value; expected 3 or more"),
        ("steps: 100", "steps: 100, decays: [0.5, 0.3]", "train.decays: the last decay ends with the training"),
        ("steps: 100", "warmup: 0.4", r"train.decays: the first decay begins before the warm-up ends"),
        ("length: 64", "length: 640", "train.length: rows longer than the context; expected <= 128"),
        ("size: nano", "size: nano\nagainst: moe", "study.yaml:4: against: no such arm"),
        ("  head_mixer: {}", "  Head/: {arm: dense}", "arms.Head/"),
    ],
)
def test_errors_name_their_place_and_what_was_expected(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(RecipeError, match=message):
        read(tmp_path, GOOD.replace(old, new, 1))


def test_an_empty_study_names_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="an empty study; it needs name, data, size, depths and arms"):
        read(tmp_path, "")
