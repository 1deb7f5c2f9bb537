"""Do two processes of torchrun, with copies or with pieces of a model, train what one process trains?"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ranked import SCENES, STEPS, STOP, batches, train

import moesaic
from moesaic.files import read_manifest
from moesaic.tensors.tensors import read_tensors
from moesaic.testing import tiny_decoder
from moesaic.train.ranks import ALONE, joined, spread, threads_each, world_size

ROOT = Path(moesaic.__file__).parents[1]
BOTH = pytest.mark.parametrize("how", ["copies", "pieces"])


@pytest.fixture(scope="module")
def left(tmp_path_factory) -> Path:
    """What one process leaves, and then two that also take up its states."""
    folder = tmp_path_factory.mktemp("ranks")
    train(folder / "one")
    train(folder / "one-tied", tie=True)
    for how in ("copies", "pieces"):
        train(folder / f"one-for-{how}", state=folder / f"one-for-{how}" / "at", stop=STOP)
    path = os.pathsep.join([str(ROOT), *sys.path])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    asked = [*command, str(Path(__file__).with_name("ranked.py")), str(folder)]
    done = subprocess.run(asked, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in folder.iterdir()} >= {*SCENES}
    return folder


def rows(folder: Path) -> list[dict]:
    return json.loads((folder / "rows.json").read_text())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return read_tensors(folder / "weights.safetensors")


def assert_like(found: Path, expected: Path, since: int = 0) -> None:
    """The same losses, norms and validations from a step on, and the same weights, to rounding."""
    steps = rows(expected)[since:]
    assert len(rows(found)) == len(steps) > 0
    for row, other in zip(rows(found), steps, strict=True):
        row.pop("together"), other.pop("together")
        assert row == pytest.approx(other, rel=1e-5)
    one, other = weights(found), weights(expected)
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@BOTH
def test_two_processes_train_what_one_trains(how, left):
    assert_like(left / how, left / "one")


@pytest.mark.slow
def test_pieces_of_an_embedding_that_is_also_the_head_are_trained_as_one(left):
    assert_like(left / "tied", left / "one-tied")


@pytest.mark.slow
@BOTH
def test_each_micro_batch_is_computed_once_and_counts_are_summed_once(how, left):
    seen = [json.loads((left / how / f"seen-{rank}.json").read_text()) for rank in (0, 1)]
    packed = batches()
    expected = [packed(micro).ids.sum().item() for micro in range(4 * STEPS)]
    assert [seen[0], seen[1]] == [expected[0::2], expected[1::2]]
    assert [row["together"] for row in rows(left / how)] == [[2.0, 1.0]] * STEPS


@pytest.mark.slow
@BOTH
def test_stopped_and_taken_up_by_as_many_processes_it_ends_in_the_same_bits(how, left):
    first, second = left / f"{how}-resumed" / "first", left / f"{how}-resumed" / "second"
    assert rows(first) + rows(second) == rows(left / how)
    whole, found = weights(left / how), weights(second)
    assert all(torch.equal(whole[name], found[name]) for name in whole)


@pytest.mark.slow
@BOTH
def test_another_number_of_processes_takes_a_training_up_with_the_same_loss(how, left, tmp_path):
    """One process where two have stopped, and two where one has."""
    train(tmp_path, state=left / f"{how}-left" / "at")
    assert_like(tmp_path, left / "one", since=STOP)
    assert_like(left / f"{how}-taken-up", left / "one", since=STOP)


@pytest.mark.slow
def test_a_state_of_pieces_is_safetensors_alone_and_hashed(left):
    folder = left / "pieces-resumed" / "at" / "state"
    files = read_manifest(folder, "checkpoint")["files"]
    assert len(files) == 2 and all(name.endswith(".safetensors") for name in files)
    assert {path.name for path in folder.iterdir()} == {*files, "manifest.json"}


def test_without_torchrun_a_process_is_alone():
    decoder = tiny_decoder()
    with joined() as rank:
        assert (rank, world_size(), threads_each(3)) == (0, 1, 3)
        assert spread(decoder, sharded=True) == (decoder, ALONE)
    assert [*ALONE.own(8, 4)] == [8, 9, 10, 11]
