"""Journey: whatever goes wrong: the exit code, and a line that names the file, the field, what was expected
and what to do.
"""

import shutil
import signal
import time
from pathlib import Path

import pytest

import moesaic

TENSORS = "*.safetensors"


def test_a_setting_that_does_not_exist_is_refused_with_the_nearest_one(own, apart):
    (own / "small.yaml").write_text((own / "small.yaml").read_text().replace("epochs: 30", "epoch: 30"))
    code, out, err = apart(own, "run", "small.yaml")
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert "small.yaml" in err and "router.epoch" in err and "did you mean 'epochs'?" in err


@pytest.mark.parametrize(
    ("typed", "code", "said"),
    [
        (("run", "small.yaml", "train.step=5"), 2, ("train.step", "did you mean 'steps'?")),
        (("run", "small.yaml", "train.steps=many"), 2, ("train.steps", "many")),
        (("run", "small.yaml", "router.kind=lineal"), 2, ("router.kind", "lineal", "linear")),
        (("rum", "small.yaml"), 2, ("rum", "run")),
        (("run", "small.yaml", "--quite"), 2, ("--quite", "--quiet")),
        (("run", "none.yaml"), 2, ("none.yaml", "no such file")),
        (("run", "small.yaml", "experts.sums.data.train=none.jsonl", "--quiet"), 3, ("none.jsonl",)),
        (("generate", "runs/none", "hi"), 4, ("runs/none",)),
        (("generate", "runs/small", "hi", "--expert", "brids"), 2, ("brids", "did you mean 'birds'?")),
        (("inspect", "runs"), 4, ("runs", "expected a run directory")),
    ],
)
def test_a_slip_of_the_hand_is_named(own, command, typed, code, said):
    answer = command(*typed)
    assert (answer.code, answer.out) == (code, "") and answer.err.startswith("error: ")
    assert answer.err.splitlines()[-1].startswith("error: ") and all(word in answer.err for word in said), answer.err


def test_a_damaged_file_is_named_and_made_anew_by_the_next_run(own, command, files):
    damaged = own / "runs/small/mixture/base/model.safetensors"
    before = files(own / "runs/small", TENSORS)
    held = bytearray(damaged.read_bytes())
    held[-1] ^= 1
    damaged.unlink()
    damaged.write_bytes(held)
    code, out, err = command("generate", "runs/small", "hi")
    assert (code, out) == (4, "") and "base/model.safetensors" in err and "the file was changed or damaged" in err
    with pytest.raises(moesaic.MoesaicError) as caught:
        moesaic.load("runs/small")
    assert caught.value.exit_code == 4 and str(caught.value) in err
    assert command("run", "small.yaml", "--quiet").code == 0
    assert files(own / "runs/small", TENSORS) == before


def test_an_expert_of_another_base_is_refused(here, command, other_base, tmp_path):
    experts = ("runs/small/experts/sums", "runs/small/experts/birds")
    code, out, err = command("adopt", *experts, "--base", other_base, "--out", tmp_path / "mix")
    assert (code, out) == (5, "") and "experts/sums" in err
    assert "another base" in err and "expected" in err and "got" in err
    assert not (tmp_path / "mix/mixture").exists()


def steps_in(log: Path) -> int:
    """Steps of a training that its log holds, one in a line."""
    return sum(len(path.read_bytes().splitlines()) for path in log.glob("*.jsonl"))


def test_ctrl_c_ends_a_training_which_the_next_run_finishes_to_the_same_bytes(
    own, start, ended, command, files, tmp_path
):
    typed = ("train-expert", "small.yaml", "--expert", "code", "experts.code.train.steps=40", "checkpoint_seconds=0")
    shutil.copytree(own / "runs/small", tmp_path / "calm/small", symlinks=True)
    before = files(own / "runs/small/experts/code")
    log = own / "runs/small/metrics/experts/code"
    shutil.rmtree(log)
    running = start(own, *typed)
    while running.poll() is None and not any(path.stat().st_size for path in log.glob("*.jsonl")):
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    code, out, err = ended(running)
    assert (code, out) == (130, ""), err
    assert err.endswith("interrupted; run the same command to continue\n") and "Traceback" not in err
    assert 0 < steps_in(log) < 40 and files(own / "runs/small/experts/code") == before
    again = command(*typed)
    assert again.code == 0 and "code  validation" in again.err
    assert command(*typed, "--out", tmp_path / "calm").code == 0
    resumed, calm = (files(root / "small/experts/code", TENSORS) for root in (own / "runs", tmp_path / "calm"))
    assert resumed == calm and steps_in(log) == 40
