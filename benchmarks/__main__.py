"""`python -m benchmarks [NAME ...]`: run the benchmarks named, or all, and write benchmarks/results/NAME.md."""

import platform
import subprocess
import sys
from datetime import date
from importlib import import_module
from pathlib import Path

import torch

ALL = ("mixed_rows", "decoding", "loading", "tt_lora", "sites", "budget")


def main(names: list[str]) -> None:
    for name in names or list(ALL):
        text = import_module(f"benchmarks.{name}").report()
        path = Path(__file__).parent / "results" / f"{name}.md"
        path.write_text(heading(name) + text)
        print(path.read_text())


def heading(name: str) -> str:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    cpu = next((line.split(":")[1].strip() for line in cpuinfo() if line.startswith("model name")), platform.machine())
    return (
        f"# {name}\n\n{date.today()}, commit {commit}, {cpu}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}. Again: `python -m benchmarks {name}`\n\n"
    )


def cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []


if __name__ == "__main__":
    main(sys.argv[1:])
