"""The golden recipes in a process of pinned arithmetic: the same instructions on every x86-64 processor with AVX2.

Torch computes with its own kernels (ATen), with MKL as its BLAS and with oneDNN; numpy has kernels and a BLAS too. Each
picks instructions by the processor unless told. Knows nothing about what is compared.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NAMES = sorted(path.stem for path in HERE.glob("*.yaml"))

PINS = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_CBWR": "COMPATIBLE",  # the only setting of MKL that gives one result on Intel and on AMD
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "PYTHONPATH": str(ROOT),
}
OTHER = {"ATEN_CPU_CAPABILITY": "default"}
"""Other arithmetic on the same processor: what differs under it depends on rounding."""


def run_all(folder: Path, changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """Run every recipe into FOLDER/NAME/run; return the probe of the arithmetic: its hash, and who computed."""
    environment = {**os.environ, **PINS, **(changes or {})}
    command = [sys.executable, str(HERE / "child.py"), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return json.loads((folder / "probe.json").read_text())


def failure(folder: Path, name: str) -> str:
    """Return the traceback of a recipe that failed, or nothing."""
    path = folder / name / "failed.txt"
    return path.read_text() if path.exists() else ""
