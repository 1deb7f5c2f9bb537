import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from moesaic.cli.main import status

RECIPE = """\
name: small
workers: 1
base: {size: nano, vocab_size: 300, pretrain: {steps: 4, batch: 2, length: 64, lr: 1e-3}}
train: {steps: 2, batch: 2, length: 64}
experts:
  sums: {kind: lora, rank: 2, data: {train: sums-train.jsonl, test: sums-test.jsonl}}
  birds: {kind: lora, rank: 2, data: {train: birds-train.jsonl, test: birds-test.jsonl}}
router: {kind: linear, feature: embedding_mean, epochs: 2, abstain: off}
evaluate: {limit: 4, samples: 1}
"""
WORDS = {"sums": "one two three four five six seven", "birds": "wren owl finch hawk crow lark swan"}

Answer = tuple[int, str, str]
"""Exit status, stdout, stderr."""


def write_recipe(folder: Path) -> Path:
    """A recipe with two experts, and their texts."""
    for name, words in WORDS.items():
        for split, rows in (("train", 24), ("test", 6)):
            *some, last = words.split()
            lines = (
                json.dumps({"prompt": f"{some[i % 6]} {some[i // 6]} {split} {i}", "response": f"{last} {some[i % 5]}"})
                for i in range(rows)
            )
            (folder / f"{name}-{split}.jsonl").write_text("\n".join(lines) + "\n")
    path = folder / "small.yaml"
    path.write_text(RECIPE)
    return path


def in_process(folder: Path, *arguments: str, stdin: str = "") -> Answer:
    """The command as a user runs it, in a process of its own."""
    command = [sys.executable, "-c", "from moesaic.cli.main import main; main()", *arguments]
    done = subprocess.run(command, cwd=folder, input=stdin, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_recipe(tmp_path)


@pytest.fixture
def moesaic(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """The command in this process, where torch is imported already; no answer may hold a traceback."""

    def call(*arguments: object) -> Answer:
        capsys.readouterr()
        code = status([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        assert (code == 0) == ("error" not in err)
        assert code == 0 or err.count("\n") == 1
        return code, out, err

    return call


@pytest.fixture
def apart() -> Callable[..., Answer]:
    """The command in a process of its own: a folder to be in, then the arguments."""
    return in_process


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Answer]]:
    """The folder in which `moesaic run small.yaml` was called, and what it answered."""
    folder = tmp_path_factory.mktemp("finished")
    write_recipe(folder)
    yield folder, in_process(folder, "run", "small.yaml")
