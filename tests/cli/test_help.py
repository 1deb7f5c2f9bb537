"""Property: are help and version printed without importing what computes, and does help name every verb?"""

import subprocess
import sys

import pytest

import moesaic
from moesaic.cli.main import app, without_debug

HEAVY = {"torch", "numpy", "pydantic", "yaml", "tokenizers", "rich"}


def modules_after(*arguments: str) -> tuple[str, set[str]]:
    script = (
        "import atexit, sys; atexit.register(lambda: print(*sys.modules)); from moesaic.cli.main import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    said, _, modules = done.stdout.rstrip("\n").rpartition("\n")
    return said, set(modules.split())


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_imports_nothing_heavy(arguments):
    said, modules = modules_after(*arguments)
    assert said.startswith("Usage: moesaic") and not modules & HEAVY


@pytest.mark.parametrize("arguments", [["--version"], ["run", "--help"], ["generate", "--help"]])
def test_what_needs_no_model_imports_only_what_typer_does(arguments):
    _, modules = modules_after(*arguments)
    assert not modules & (HEAVY - {"pydantic"})


def test_help_names_every_verb():
    said, _ = modules_after("--help")
    verbs = [command.name or command.callback.__name__.replace("_", "-") for command in app.registered_commands]
    assert {"run", "pretrain", "train-expert", "verify-expert", "train-router", "compose", "generate"} < set(verbs)
    assert all(f"\n  {verb} " in said for verb in verbs)
    assert "..." not in said.split("Commands:")[1]  # no description is cut off


def test_help_ends_with_a_command_that_needs_no_file():
    said, _ = modules_after()
    assert 'Start with `moesaic generate shipped:tiny "Once"`, `moesaic run demo`, or ' in " ".join(said.split())


def test_version():
    assert modules_after("--version")[0] == f"moesaic {moesaic.__version__}"


def test_debug_may_stand_anywhere_but_among_the_words():
    assert without_debug(["run", "a.yaml", "--debug"]) == (["run", "a.yaml"], True)
    assert without_debug(["--debug", "run"]) == (["run"], True)
    assert without_debug(["generate", "x", "--", "--debug"]) == (["generate", "x", "--", "--debug"], False)
