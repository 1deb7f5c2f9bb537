"""A traveller's luggage: a folder with texts and a recipe, and the command as a user types it.

The journeys know the command line and the names in `moesaic.__all__`, and no module behind them. The function behind
the command is looked up in pyproject.toml, as an installer does, so that no internal name stands here either.
"""

import fnmatch
import importlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest
from safetensors.numpy import load_file, save_file

ROOT = Path(__file__).parents[2]
MODULE, FUNCTION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["moesaic"].split(":")

RECIPE = """\
name: small
workers: 1
base: {size: nano, vocab_size: 300, pretrain: {steps: 4, batch: 4, length: 64, lr: 3e-3}}
train: {steps: 3, batch: 4, length: 64, lr: 1e-2}
experts:
  sums: {kind: lora, rank: 2, data: {train: sums-train.jsonl, test: sums-test.jsonl}}
  code: {kind: lora, rank: 3, data: {train: code-train.jsonl, test: code-test.jsonl}}
  birds: {kind: lora, rank: 2, data: {train: birds-train.jsonl, test: birds-test.jsonl}}
router: {kind: linear, feature: embedding_mean, epochs: 30, lr: 1e-2}
evaluate: {limit: 4, samples: 1}
"""
NAMES = ("sums", "code", "birds")
"""The experts in the recipe's order, which is against the alphabet."""

PROMPTS = {
    "sums": [f"add {a} to {b} and say the sum" for a, b in zip("1234567890", "3456789012", strict=True)],
    "code": [f"def {name}(x): return x * {n}" for n, name in enumerate("abcdefghij")],
    "birds": [
        f"the {bird} sings in the old tree"
        for bird in ("wren", "owl", "finch", "hawk", "crow", "lark", "swan", "tit", "kite", "rook")
    ],
}
RESPONSES = {"sums": "{} it is", "code": "print({})", "birds": "and {} eggs lie in its nest"}


class Answer(NamedTuple):
    """Exit code, stdout, stderr."""

    code: int
    out: str
    err: str


Command = Callable[..., Answer]


def fill(folder: Path) -> None:
    """Writes texts of three domains, a file of prompts for each, and the recipe."""
    for name, prompts in PROMPTS.items():
        for split, count in (("train", 24), ("test", 6)):
            rows = (
                {"prompt": f"{prompts[n % 10]} {split} {n}", "response": RESPONSES[name].format(n)}
                for n in range(count)
            )
            (folder / f"{name}-{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / f"{name}.txt").write_text("\n".join(prompts) + "\n")
    (folder / "small.yaml").write_text(RECIPE)


def process(folder: Path, *arguments: object) -> subprocess.Popen[str]:
    """Starts the command in a process of its own, as the installed script does."""
    script = f"import sys; from {MODULE} import {FUNCTION}; sys.exit({FUNCTION}())"
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(running: subprocess.Popen[str]) -> Answer:
    """Waits for a process that was started."""
    try:
        out, err = running.communicate(timeout=120)
    finally:
        running.kill()
    return Answer(running.returncode, out, err)


@pytest.fixture(scope="session")
def start() -> Callable[..., subprocess.Popen[str]]:
    """Starts the command in a folder and does not wait for its end."""
    return process


@pytest.fixture(scope="session")
def ended() -> Callable[..., Answer]:
    """The answer of a process that `start` gave."""
    return finish


@pytest.fixture(scope="session")
def apart() -> Command:
    """The command in a process of its own: the folder to type it in, then the arguments."""
    return lambda folder, *arguments: finish(process(folder, *arguments))


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """The command within this process, where importing torch is paid for already; else as a user types it."""
    main = getattr(importlib.import_module(MODULE), FUNCTION)

    def call(*arguments: object) -> Answer:
        capsys.readouterr()
        typed = ["moesaic", *map(str, arguments)]
        with (
            mock.patch.object(sys, "argv", typed),
            mock.patch.dict(os.environ),
            warnings.catch_warnings(),
            pytest.raises(SystemExit) as left,
        ):
            main()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return Answer(left.value.code or 0, out, err)

    return call


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, apart: Command) -> Iterator[tuple[Path, Answer]]:
    """A folder in which `moesaic run small.yaml` was typed, for reading only; and what that answered."""
    folder = tmp_path_factory.mktemp("finished")
    fill(folder)
    yield folder, apart(folder, "run", "small.yaml")


@pytest.fixture
def here(finished: tuple[Path, Answer], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The finished folder, which the command is typed in; nothing may be changed there."""
    monkeypatch.chdir(finished[0])
    return finished[0]


@pytest.fixture
def own(finished: tuple[Path, Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished folder, to change at will."""
    folder = tmp_path / "own"
    shutil.copytree(finished[0], folder, symlinks=True)
    monkeypatch.chdir(folder)
    return folder


def contents(folder: Path, pattern: str = "*") -> dict[str, bytes]:
    """Files below a folder that fit the pattern, by path; links are followed, hidden files left out."""
    found = {}
    for at, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in fnmatch.filter(names, pattern):
            if not name.startswith("."):
                path = Path(at, name)
                found[str(path.relative_to(folder))] = path.read_bytes()
    return found


@pytest.fixture(scope="session")
def files() -> Callable[..., dict[str, bytes]]:
    """The bytes of the files below a folder, by path."""
    return contents


@pytest.fixture(scope="session")
def prompts() -> dict[str, list[str]]:
    """Ten prompts for each of the three experts, in the recipe's order."""
    return PROMPTS


@pytest.fixture(scope="session")
def other_base(finished: tuple[Path, Answer], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the same shape and tokenizer with other weights, as from somewhere else: without a manifest."""
    folder = tmp_path_factory.mktemp("elsewhere") / "base"
    shutil.copytree(finished[0] / "runs/small/base", folder)
    (folder / "manifest.json").unlink()
    weights = {name: weight * 2 for name, weight in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder
