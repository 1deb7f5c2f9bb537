"""Property: does a mixture whose experts weigh three times its memory stay within it, as the operating system counts?

The same as `benchmarks/budget.py`, with experts of less than 100 MB.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")]

WATCH = """
import json, sys
from dataclasses import replace
from pathlib import Path
import torch
torch.set_num_threads(1)
from benchmarks.budget import LARGE, SMALL, WORDS, compose, does_without, run
from moesaic.compose.plan import plan

folder, site, experts = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
middle = replace(LARGE, hidden_size=512, num_layers=6, num_heads=8, intermediate_size=1536)
mixture, prompts = compose(folder, site, WORDS[:experts], SMALL if site == "model" else middle, middle)
sizes = [part.bytes for part in plan(mixture).parts if part.role == "expert"]
ram = sum(sizes) // 3
limit = ram + ram // 10
told = {
    "whole": run(mixture, None, prompts), "within": run(mixture, ram, prompts), "limited": run(mixture, ram, prompts,
    limit=limit), "ram": ram, "size": sizes[0], "does_without": does_without(mixture, prompts, limit),
}
print(json.dumps(told))
"""


@pytest.mark.parametrize(("site", "experts"), [("model", 6), ("ffn", 10)])
def test_experts_of_three_times_the_memory_run_within_it_and_write_the_same(tmp_path, site, experts):
    command, root = [sys.executable, "-c", WATCH, str(tmp_path), site, str(experts)], Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, cwd=root)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    whole, within, limited, ram, size = (told[name] for name in ("whole", "within", "limited", "ram", "size"))
    print(f"{site}: {within['peak'] / 1e6:.0f} of {ram / 1e6:.0f} MB, {whole['peak'] / 1e6:.0f} MB without a budget")
    assert size > 50e6 and whole["peak"] > 3 * ram
    assert within["ids"] == limited["ids"] == whole["ids"] and len(within["ids"]) == 2 * experts
    assert size < within["peak"] <= ram and limited["peak"] <= ram
    assert within["traffic"][:3] == [experts, experts * size, 0], "each expert once, whoever asks for it"
    assert not told["does_without"], "the limit of the system is one"
