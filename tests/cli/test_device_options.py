"""Journey: each verb that computes with a model takes --device and --dtype, and refuses what is not there in a line."""

from pathlib import Path

import pytest
import torch
import typer.main

from moesaic.cli.main import app
from moesaic.errors import RecipeError

WITHOUT = ["study", "export", "report", "merge", "tokenize", "upcycle", "plan", "push", "init"]
WITHOUT += ["recipe-from", "recipe"]
"""Verbs that compute with no model, or only with its weights."""
TINY = "shipped:tiny"
CALLS = {
    "generate": (TINY, "Once"),
    "route": (TINY, "Once"),
    "chat": (TINY,),
    "classify": (TINY, "Once"),
    "inspect": (TINY, "--text", "Once"),
    "serve": (TINY,),
    "evaluate": (TINY, "--unseen", "rows.jsonl"),
    "replay": ("trace.jsonl", "--router", "router"),
    "adopt": ("one", "--base", TINY, "--out", "made"),
    "run": ("demo",),
    "pretrain": ("demo",),
    "train-expert": ("demo",),
    "train-router": ("demo",),
    "verify-expert": ("demo",),
    "continual": ("demo",),
    "bench": ("routing", "demo"),
}


def options(verb: str) -> set[str]:
    command = typer.main.get_command(app)
    return {name for one in command.commands[verb].params for name in one.opts}


def test_the_verbs_that_compute_have_both_options():
    verbs = typer.main.get_command(app).commands
    assert {verb for verb in verbs if {"--device", "--dtype"} <= options(verb)} == {*CALLS, "add-expert", "compose"}
    assert {verb for verb in verbs if "--device" not in options(verb)} == {*WITHOUT}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a card")
@pytest.mark.parametrize("verb", [*CALLS])
def test_a_card_that_is_not_there_is_one_line_with_what_there_is(verb, moesaic, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("router", "mixture"):
        Path(name).mkdir()
        (Path(name) / "manifest.json").write_text("{}")
    code, out, err = moesaic(verb, *CALLS[verb], "--device", "cuda")
    assert code == RecipeError.exit_code and out == ""
    assert err.endswith("device: this machine has no such device; expected auto or cpu; got cuda\n")


def test_a_type_that_is_unknown_is_one_line(moesaic):
    code, _, err = moesaic("generate", TINY, "Once", "--dtype", "bf16")
    assert code == RecipeError.exit_code
    assert err.startswith("error: --dtype: unknown type; expected auto or float32 or bfloat16 or float16; got bf16")
    code, _, err = moesaic("run", "demo", "--dtype", "bf16")
    assert code == RecipeError.exit_code and "dtype" in err and "'bfloat16'" in err


def test_a_type_changes_what_is_computed_and_not_what_is_said(moesaic):
    said = {}
    for dtype in ("float32", "bfloat16"):
        code, out, _ = moesaic("generate", TINY, "Once upon a time", "--max-new-tokens", 8, "--dtype", dtype)
        assert code == 0
        said[dtype] = out
    assert said["bfloat16"] == said["float32"]
