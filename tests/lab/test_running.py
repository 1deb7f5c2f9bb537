"""Tests of whole studies in small: cells as parts of a run, versions that stay, and decays that share one training."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moesaic.data.batches import Packed
from moesaic.errors import NonFiniteError, RecipeError
from moesaic.files import read_jsonl, read_manifest, versions
from moesaic.lab import cells
from moesaic.lab.cells import Cell, begun, segments
from moesaic.lab.corpus import open_corpus
from moesaic.lab.objective import Objective
from moesaic.lab.running import run_study
from moesaic.lab.study import Study, read_study
from moesaic.runs.progress import Silent
from moesaic.train.loop import fit

STUDY = """\
name: small
workers: 1
data: texts.jsonl
unseen: 0.3
size: nano
vocab_size: 270
depths: [1]
seeds: 2
arms:
  dense: {}
  again: {arm: dense}
  redrawn: {arm: dense, redraw: 100}
  moe: {}
train: {steps: 12, batch: 2, length: 16, decays: [0.5, 1.0], warmup: 0.1}
sweep: {rates: [1e-3, 2e-3, 4e-3], most: 3, share: 0.5}
"""


def study_in(folder: Path, *overrides: str) -> Study:
    rows = [{"text": f"{who} {does} {what} and number {n}."} for n, (who, does, what) in enumerate(words())]
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "study.yaml").write_text(STUDY)
    return read_study(folder / "study.yaml", overrides)[0]


def words() -> list[tuple[str, str, str]]:
    return [
        (who, does, what)
        for who in ("the cat", "a dog", "my owl", "one fox", "this hen")
        for does in ("sees", "wants", "takes", "finds")
        for what in ("the moon", "a fish", "some bread", "the door")
    ]


class Notes(Silent):
    """Keeps what is noted."""

    def __init__(self) -> None:
        self.notes = list[str]()

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("study")
    study = study_in(folder)
    return study, folder / "run", run_study(study, folder / "run")


def test_a_study_ends_in_a_page_with_files_of_losses_times_and_perplexities(made: Any) -> None:
    study, root, found = made
    folder = root / "result"
    assert found["verdict"]["sentence"].startswith("At equal tokens, ") and (folder / "index.html").is_file()
    steps = sum(one.last - one.first for one in segments(study.train))
    rows = {name: len([*read_jsonl(folder / f"{name}.jsonl")]) for name in ("losses", "times", "perplexities")}
    assert rows == {"losses": 4 * 2 * steps, "times": 4 * 2 * 2, "perplexities": 4 * 2 * 2}
    assert not (root / "checkpoints").exists() and not [*(root / "metrics").rglob("*.jsonl")]


def test_the_log_of_a_cell_has_loss_time_speed_load_and_norm_of_every_step(made: Any) -> None:
    _, root, found = made
    rate = found["arms"]["moe"]["depths"][0]["rate"]
    rows = [row for _, row in read_jsonl(root / "cells" / f"moe-1-seed-0-lr-{rate!r}" / "steps.jsonl")]
    assert all({"segment", "step", "tokens", "seconds", "loss", "lr", "norm", "rate"} <= row.keys() for row in rows)
    assert all(len(layer) == 8 and sum(layer) == pytest.approx(8) for row in rows for layer in row["load"])
    assert [row["lr"] for row in rows if row["segment"] == "stable-1"] == [rate] * 5
    assert rows[-1]["lr"] < rate and rows[-1]["tokens"] == 12 * 32


def test_speeds_are_measured_apart_from_the_cells_for_every_arm(made: Any) -> None:
    _, root, found = made
    speeds = read_manifest(root / "speeds", "speeds")["speeds"]
    assert speeds == {f"{name}-1": arm["depths"][0]["speed"] for name, arm in found["arms"].items()}
    last = found["arms"]["dense"]["depths"][0]["decays"][-1]
    assert last["seconds"] == pytest.approx(last["tokens"] / speeds["dense-1"])


def test_two_arms_of_one_architecture_and_one_seed_are_the_same_bit_for_bit(made: Any) -> None:
    _, _, found = made
    dense, again, redrawn = (found["arms"][name]["depths"][0]["decays"] for name in ("dense", "again", "redrawn"))
    assert [one["bits"] for one in dense] == [one["bits"] for one in again] != [one["bits"] for one in redrawn]


def test_a_decay_is_what_a_training_of_its_own_would_be(made: Any) -> None:
    """The branch from the constant part gives the same scores as a run with that schedule from the first step on."""
    study, root, found = made
    rate = found["arms"]["dense"]["depths"][0]["rate"]
    cell = Cell("dense", 1, 0, rate)
    corpus = open_corpus(root / "corpus", 16, study.rows)
    facts = read_manifest(root / "cells" / cell.name)["decays"]
    for end, decay in zip(study.train.ends, facts, strict=True):
        decoder = begun(study, cell)
        objective, packed = Objective(decoder, ""), Packed(corpus.shards.train, 16, 2, 0)
        how = study.train.to(end, rate, decays=True)
        fit(
            dict(decoder.named_parameters()),
            objective.batches(packed, 1),
            objective,
            lambda: 0.0,
            how,
            rate,
            lambda row: None,
        )
        nats, counts = corpus.judging.scored(objective.rows, 2)
        assert float(nats.sum()) == pytest.approx(decay["nats"], rel=1e-6)
        assert (int(counts.sum()), end * 32) == (decay["scored"], decay["tokens"])


def test_shared_weights_begin_equal_whatever_the_arm_adds(made: Any) -> None:
    study, _, _ = made
    dense, moe = (dict(begun(study, Cell(arm, 2, 0, 1e-3)).named_parameters()) for arm in ("dense", "moe"))
    shared = [name for name in moe if name in dense]
    assert "lm_head.weight" in dense or "embed_tokens.weight" in shared
    assert all(torch.equal(moe[name], dense[name]) for name in shared if moe[name].shape == dense[name].shape)
    expected = {"self_attn.q_proj": 32**-0.5, "mlp.gate_proj": 32**-0.5, "mlp.down_proj": 32**-0.5 / 2}
    for name, deviation in expected.items():
        assert dense[f"layers.1.{name}.weight"].std().item() == pytest.approx(deviation, rel=0.1)


@pytest.mark.slow
def test_finished_cells_are_skipped_and_a_changed_study_leaves_the_old_versions(tmp_path: Path) -> None:
    arms = ("seeds=2", "sweep.share=0.2")
    study = study_in(tmp_path, *arms)
    study = study.model_copy(update={"arms": {name: study.arms[name] for name in ("dense", "redrawn")}})
    run_study(study, tmp_path / "run")
    notes = Notes()
    run_study(study, tmp_path / "run", notes)
    assert len(notes.notes) == 1 + 2 * 3 + 2 * 2 + 2 and all(
        note.endswith(": finished, skipped") for note in notes.notes
    )

    longer = study.model_copy(update={"train": study.train.model_copy(update={"steps": 20})})
    run_study(longer, tmp_path / "run", notes)
    kept = versions(tmp_path / "run" / "result")
    assert len(kept) == 2
    old, new = (json.loads((folder / "study.json").read_text())["tokens"] for folder in sorted(kept))
    assert (old, new) == (12 * 32, 20 * 32)


@pytest.mark.slow
def test_an_interrupted_cell_goes_on_and_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_in(tmp_path, "checkpoint_seconds=0")
    study = study.model_copy(update={"arms": {name: study.arms[name] for name in ("dense", "moe")}})
    whole = run_study(study, tmp_path / "whole")

    class Stop(Exception):
        pass

    scored, calls = cells.fit, []

    def stopping(*given: Any, **named: Any) -> Any:
        calls.append(given)
        if len(calls) == 15:
            raise Stop
        return scored(*given, **named)

    monkeypatch.setattr(cells, "fit", stopping)
    with pytest.raises(Stop):
        run_study(study, tmp_path / "parts")
    assert [*(tmp_path / "parts" / "checkpoints").rglob("state.safetensors")]
    again = run_study(study, tmp_path / "parts")
    bits = [
        [[one["bits"] for one in arm["depths"][0]["decays"]] for arm in found["arms"].values()]
        for found in (whole, again)
    ]
    assert bits[0] == bits[1]


@pytest.mark.slow
def test_a_trial_that_diverges_is_no_end_of_a_study_but_a_cell_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_in(tmp_path)
    study = study.model_copy(update={"arms": {name: study.arms[name] for name in ("dense", "redrawn")}})
    trained = cells.fit

    def diverging(
        parameters: Any, batch: Any, loss: Any, validate: Any, settings: Any, lr: float, *rest: Any, **named: Any
    ) -> Any:
        if lr == 4e-3:
            raise NonFiniteError("the loss of step 3 is nan")
        return trained(parameters, batch, loss, validate, settings, lr, *rest, **named)

    monkeypatch.setattr(cells, "fit", diverging)
    with pytest.warns(match="diverged: the loss of step 3 is nan"):
        found = run_study(study, tmp_path / "run")
    assert [sweep["tried"][-1] for sweep in found["sweeps"]] == [[0.004, None]] * 2
    monkeypatch.setattr(cells, "fit", lambda *given, **named: diverging(*given[:5], 4e-3, *given[6:], **named))
    with pytest.raises(NonFiniteError):
        cells.train_cell(*arguments(study, tmp_path / "run"))


def arguments(study: Study, root: Path) -> tuple[Any, ...]:
    from moesaic.lab.directory import StudyDir
    from moesaic.runs.jobs import Cache, Report

    report = Report("cell", lambda *message: None, Cache())
    return StudyDir(study, root), Cell("dense", 1, 7, 1e-3), {}, "key", report


def test_a_missing_file_and_an_unknown_cell_are_named(tmp_path: Path) -> None:
    study = study_in(tmp_path)
    with pytest.raises(RecipeError, match="no half-done cell; expected none; got dense"):
        run_study(study, tmp_path / "run", restart=["dense"])
    (tmp_path / "texts.jsonl").unlink()
    with pytest.raises(Exception, match="data: no such file: texts.jsonl"):
        run_study(study, tmp_path / "run")


def test_nats_of_cells_have_the_shape_of_their_decays(made: Any) -> None:
    study, root, _ = made
    corpus = open_corpus(root / "corpus", 16, study.rows)
    few = open_corpus(root / "corpus", 16, 3)
    assert len(few.judging.bytes) == len(few.choosing.bytes) == 3
    assert np.array_equal(few.judging.bytes, corpus.judging.bytes[:3])
    assert replace(Cell("dense", 1, 0, 1e-3), swept=True).settings(study).ends == [6]
