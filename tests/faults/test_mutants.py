"""Each guard taken out of the code makes a test fail: what is promised is also watched."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

DELETE = """\
        for number in sorted(found)[: max(len(found) - keep, 0)]:
            disk.rename(found[number], scratch / found[number].name)  # half of one never bears its name
"""
SWING = """\
        disk.rename(link, at)
"""

# What is taken out, where, what stands in its place, and the tests of which at least one must notice.
MUTANTS = {
    "without fsync": ("files/disk.py", "        os.fsync(fd)\n", "        pass\n", "files"),
    "with rename and delete swapped": ("files/publishing.py", SWING, f"{DELETE}{SWING}", "files/test_publishing.py"),
    "the draft written in place": (
        "files/publishing.py",
        "scratch / version.name,",
        "version,",
        "files/test_publishing.py",
    ),
    "without the lock": ("files/locking.py", "fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass", "files"),
    "without hashes": ("files/manifest.py", "hashed=verify)", "hashed=False)", "faults/test_resuming.py"),
    "without the state of randomness": (
        "train/loop.py",
        "torch.manual_seed(seed * 1_000_003 + state.step)",
        "pass",
        "faults/test_resuming.py",
    ),
    "without the finite check": (
        "train/loop.py",
        "if not math.isfinite(total) or not math.isfinite(norm):",
        "if False:",
        "faults/test_resuming.py",
    ),
    "without the optimiser's moments": ("train/checkpoint.py", "if moments:", "if False:", "faults/test_kills.py"),
    "without cutting the log": ("train/checkpoint.py", "not self._log.cut(rows)", "False", "faults/test_resuming.py"),
    "without comparing settings": ("train/checkpoint.py", "if differing:", "if False:", "faults/test_resuming.py"),
    "without the best so far": (
        "train/checkpoint.py",
        "for name, tensor in state.kept.items()}\n",
        "for name, tensor in []}\n",
        "faults/test_resuming.py",
    ),
    "without a saved state before it goes": ("train/checkpoint.py", "if done or stop or", "if done or", "faults"),
    "without asking for room": ("files/disk.py", "if free < needed:", "if False:", "files"),
}


@pytest.mark.faults
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_test_notices(mutant: str, tmp_path: Path):
    file, old, new, tests = MUTANTS[mutant]
    for name in ("moesaic", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    path = tmp_path / "moesaic" / file
    text = path.read_text()
    assert text.count(old) == 1, "the guard is where it was"
    path.write_text(text.replace(old, new))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-m",
        "not faults",
        "-p",
        "no:cacheprovider",
        f"tests/{tests}",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stdout[-3000:] + done.stderr[-3000:]
    print(f"{mutant}: {next(line for line in done.stdout.splitlines() if line.startswith('FAILED'))}")
