"""Does a run name the code and the machine that it is made with, and nothing where they are unknown?"""

import re
import subprocess
from pathlib import Path

import pytest
import torch

import moesaic
from moesaic.runs import machine as module
from moesaic.runs.machine import commit, machine, processor

INFO = """processor	: 0
model name	: A Processor @ 2 GHz
flags		: fpu avx2 avx512f {}

processor	: 1
model name	: A Processor @ 2 GHz
flags		: fpu avx2 avx512f {}
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git checkout with one commit, as if the package lay in it."""
    (tmp_path / "moesaic").mkdir()
    (tmp_path / "moesaic/__init__.py").write_text("")
    monkeypatch.setattr(moesaic, "__file__", str(tmp_path / "moesaic/__init__.py"))
    who = ["-c", "user.name=me", "-c", "user.email=me@here"]
    for words in (["init", "--quiet"], ["add", "."], [*who, "commit", "--quiet", "--message", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    return tmp_path


def test_the_commit_is_that_of_the_code_and_marked_where_the_code_has_changed(checkout: Path) -> None:
    first = commit()
    assert first and re.fullmatch(r"[0-9a-f]{7,40}", first)
    (checkout / "notes.txt").write_text("beside the package")
    assert commit() == first
    (checkout / "moesaic/__init__.py").write_text("changed = True")
    assert commit() == f"{first}+"


def test_an_installed_package_has_no_commit_even_inside_a_checkout_of_something_else(checkout: Path, monkeypatch):
    monkeypatch.setattr(moesaic, "__file__", str(checkout / "site-packages/moesaic/__init__.py"))
    assert commit() is None


def test_without_git_there_is_no_commit(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert commit() is None


@pytest.mark.parametrize(
    ("more", "expected"), [("avx512_vnni", "AVX512-VNNI"), ("", "AVX512")], ids=["with VNNI", "without"]
)
def test_the_fastest_instructions_are_named(more, expected, tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(INFO.format(more, more))
    monkeypatch.setattr(module, "Path", lambda place: tmp_path / "cpuinfo" if place == "/proc/cpuinfo" else Path(place))
    assert processor()[0] == "A Processor @ 2 GHz"
    found = machine()
    assert (found["processor"], found["instructions"]) == ("A Processor @ 2 GHz", expected)
    assert found["threads"] == torch.get_num_threads() and found["torch"] == torch.__version__
