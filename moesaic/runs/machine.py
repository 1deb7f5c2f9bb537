"""The machine and the code that a run is made with, for comparing the figures of two runs.

Knows nothing about runs. No result depends on these values, so they belong beside times only.
"""

import platform
import subprocess
from datetime import date
from pathlib import Path
from typing import Any

import torch

import moesaic

INSTRUCTIONS = {"avx512_vnni": "AVX512-VNNI", "avx512f": "AVX512", "avx2": "AVX2"}
"""Instruction flags of processors on Linux, the fastest first, and their names."""


def machine() -> dict[str, Any]:
    """The processor, its fastest instructions, the threads in use, the date, and the versions of the code."""
    model, flags = processor()
    return {
        "date": date.today().isoformat(),
        "commit": commit(),
        "version": moesaic.__version__,
        "torch": torch.__version__,
        "processor": model,
        "instructions": next((name for flag, name in INSTRUCTIONS.items() if flag in flags), None),
        "threads": torch.get_num_threads(),
    }


def processor() -> tuple[str, set[str]]:
    """The name of the processor, and the flags of its instructions where the system lists them (Linux on x86)."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return facts.get("model name") or platform.processor() or platform.machine(), set(facts.get("flags", "").split())


def commit() -> str | None:
    """The commit of the code, with a "+" where files of the package differ from it; None outside a git checkout."""
    package = Path(moesaic.__file__).parent
    if not (package.parent / ".git").exists():
        return None
    head = output_of_git(package, "rev-parse", "--short", "HEAD")
    changed = head and output_of_git(package, "status", "--porcelain", "--", ".")
    return f"{head}+" if changed else head


def output_of_git(folder: Path, *words: str) -> str | None:
    """The output of git in a folder; None where git is not installed or fails."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
