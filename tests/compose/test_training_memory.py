"""Property: does the training of a LoRA expert take the memory that was planned, as the system measures it?"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import moesaic
from moesaic.compose.plan import plan

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")]

TOLERANCE = 0.05
RANK, TOKENS = 8, 256

MEASURE = """
import sys
from pathlib import Path
import torch
from moesaic.adapters import LoRA
from moesaic.artefacts.base import load_base
from moesaic.data.batches import Batch
from moesaic.kinds.gates import alone
from moesaic.sections.expert import ALL_TARGETS
from moesaic.sections.training import Train
from moesaic.tasks.task import trainable
from moesaic.train.execution import arrange
from moesaic.train.language import loss_of
from moesaic.train.loop import fit

torch.set_num_threads(1)
place, rows, tokens, rank, recompute = Path(sys.argv[1]), *map(int, sys.argv[2:6])

def train(decoder, rows, tokens, steps):
    layers = range(decoder.config.num_layers)
    LoRA.fresh(decoder, rank, 1.0, [*ALL_TARGETS], layers, torch.Generator().manual_seed(0)).adapt(decoder)
    settings = Train(steps=steps, evaluate_every=1, recompute=bool(recompute))
    arrange(decoder, settings)
    ids = torch.randint(300, (rows, tokens + 1), generator=torch.Generator().manual_seed(0))
    inputs = lambda step: Batch(ids[:, :-1], ids[:, 1:])
    given = trainable(decoder), inputs, loss_of(decoder, alone), lambda: 0.0, settings, 1e-3, lambda row: None
    fit(*given)

train(load_base(place).decoder.requires_grad_(False), 1, 8, 1)  # what libraries take when they first compute
def resident(peak):
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM" if peak else "VmRSS"].split()[0]) << 10

Path("/proc/self/clear_refs").write_text("5")  # the highest resident memory is that of now
before = resident(False)
train(load_base(place).decoder.requires_grad_(False), rows, tokens, 2)
print(resident(True) - before)
"""


def measured(folder: Path, rows: int, recompute: bool) -> int:
    """The peak of a process whose C library returns every freed block at once: what is held, and no holes."""
    arguments = [str(folder), str(rows), str(TOKENS), str(RANK), str(int(recompute))]
    tuned = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *arguments], capture_output=True, text=True, timeout=1800, env=tuned
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


def planned(folder: str | Path, rows: int, recompute: bool) -> int:
    found = plan(folder, rank=RANK, training=True, batch=rows, context=TOKENS, recompute=recompute)
    return found.resident + found.working - found.bytes_of("router")


@pytest.mark.parametrize("recompute", [False, True])
def test_training_over_the_shipped_base_takes_what_was_planned(recompute: bool) -> None:
    folder = Path(moesaic.__file__).parent / "shipped" / "tiny"
    assert measured(folder, 24, recompute) == pytest.approx(planned(folder, 24, recompute), rel=TOLERANCE)


@pytest.mark.parametrize("recompute", [False, True])
def test_training_over_smollm2_takes_what_was_planned(recompute: bool) -> None:
    named = os.environ.get("MOESAIC_SMOLLM2")
    if named is None:
        pytest.skip("MOESAIC_SMOLLM2 names no folder with SmolLM2")
    assert measured(Path(named), 4, recompute) == pytest.approx(planned(named, 4, recompute), rel=TOLERANCE)
