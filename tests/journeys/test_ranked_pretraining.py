"""Journey: a base is pretrained by two processes of torchrun, one of which is killed; the same command goes on."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
RECIPE = """
name: ranked
workers: 1
checkpoint_seconds: 0
base:
  size: nano
  vocab_size: 300
  pretrain: {{steps: {steps}, batch: 2, length: 24, lr: 0.003, accumulate: {accumulate}, parallel: {how}}}
experts:
  code: {{kind: lora, data: {{demo: code}}}}
  math: {{kind: lora, data: {{demo: math}}}}
router: {{kind: linear, feature: embedding_mean}}
"""
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
LOG = "metrics/base/lr-0.003.jsonl"
BOTH = pytest.mark.parametrize("how", ["ddp", "fsdp"])


COMMAND = """
import os
if os.environ["RANK"] == os.environ.get("STRUCK"):
    os.environ["MOESAIC_FAULT"] = os.environ["BLOW"]
from moesaic.cli.main import main
main()
"""


def started(
    folder: Path, out: str, how: str, accumulate: int = 2, struck: tuple[str, str] = ("", "")
) -> subprocess.Popen[str]:
    """The job of a training; `struck`: the number of a process, and the fault that strikes it."""
    recipe, script = folder / f"{how}-{accumulate}.yaml", folder / "moesaic"
    recipe.write_text(RECIPE.format(how=how, steps=10, accumulate=accumulate))
    script.write_text(COMMAND)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OMP_NUM_THREADS": "1"}
    environment |= {"MARK": str(folder / out), "STRUCK": struck[0], "BLOW": struck[1]}
    command = [*TORCHRUN, str(script), "pretrain", str(recipe), "--out", str(folder / out)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment, text=True, **pipes)


def processes(mark: Path) -> dict[str, int]:
    """The processes that torchrun has started for a training, by their number in it."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            pairs = [pair.partition("=") for pair in (folder / "environ").read_text().split("\0")]
        except OSError:
            continue
        environment = {key: value for key, _, value in pairs}
        if environment.get("MARK") == str(mark) and "RANK" in environment:
            found[environment["RANK"]] = int(folder.name)
    return found


def losses(log: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in log.read_text().splitlines()]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
@BOTH
def test_a_killed_process_ends_the_job_and_the_same_command_ends_as_if_nothing_had_happened(how, tmp_path):
    whole = started(tmp_path, "whole", how)
    told, _ = whole.communicate(timeout=900)
    assert (whole.returncode, told) == (0, f"{tmp_path}/whole/ranked/base\n"), "only the first process prints"

    run = tmp_path / "killed" / "ranked"
    for struck in (("0", "step:4:kill"), ("1", "step:3:kill"), ("0", "rename:2:kill")):
        job = started(tmp_path, "killed", how, struck=struck)
        job.communicate(timeout=900)
        assert job.returncode not in (0, None)
        assert not processes(tmp_path / "killed"), "no orphan"
        assert not (run / "base").exists(), "nothing is half published"
        print(f"{how}: {struck} ended the job {time.time() - (run / LOG).stat().st_mtime:.1f} s after the last step")
    last = started(tmp_path, "killed", how)
    _, said = last.communicate(timeout=900)
    assert last.returncode == 0 and "continues at step" in said
    for name in ("base/model.safetensors", "base/tokenizer.json"):
        assert (run / name).read_bytes() == (tmp_path / "whole/ranked" / name).read_bytes()
    assert losses(run / LOG) == losses(tmp_path / "whole/ranked" / LOG)


def test_batches_that_cannot_be_divided_are_refused_once(tmp_path):
    job = started(tmp_path, "odd", "ddp", accumulate=3)
    _, said = job.communicate(timeout=900)
    assert job.returncode == 1
    assert said.count("error: ") == 1 and "base.pretrain.accumulate" in said and "a multiple of 2" in said
