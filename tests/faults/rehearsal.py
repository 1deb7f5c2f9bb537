"""What the rehearsals of disasters share: a small recipe, and what a training leaves behind, to be compared.

Knows nothing about what goes wrong.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moesaic.files import MANIFEST, read_jsonl, read_manifest, sha256_file, versions

# A grid, for a state is kept of each rate; dropout and several epochs, for randomness; validations, for a best.
RECIPE = """\
name: small
workers: 1
checkpoint_seconds: 0
base: {size: nano, vocab_size: 300, pretrain: {steps: 12, batch: 2, length: 32, lr: 1e-2, evaluate_every: 4}}
train: {steps: 8, batch: 2, length: 48, lr: [1e-2, 3e-2], accumulate: 2, evaluate_every: 3}
experts:
  adds: {kind: lora, rank: 2, data: {train: adds.jsonl, test: adds_test.jsonl}}
  says: {kind: lora, rank: 2, data: {train: says.jsonl, test: says_test.jsonl}}
router: {kind: mlp, hidden: [16], feature: embedding_mean, epochs: 4, batch: 16, dropout: 0.5, abstain: off}
"""
PARTS = {"pretrain": "base", "expert": "experts/adds", "router": "router"}
"""Of each verb that trains, the place in the run directory of what it trains."""
FIRST = [verb if verb == "pretrain" else pytest.param(verb, marks=pytest.mark.faults) for verb in PARTS]
"""The verbs, all but one for `make test-faults` alone."""

Order = Callable[..., dict[str, Any]]


def write_recipe(folder: Path) -> Path:
    """The recipe and its texts."""
    for split, first, count in (("", 0, 40), ("_test", 50, 8)):
        numbers = range(first, first + count)
        adds = [{"prompt": f"What is {n} + {n % 7}?", "response": f"It is {n + n % 7}."} for n in numbers]
        says = [
            {"text": f"Once {n} owls and {n % 5} crows sat in a tree, and the wind sang all day long."} for n in numbers
        ]
        for name, rows in (("adds", adds), ("says", says)):
            (folder / f"{name}{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder / "recipe.yaml"


def copy(run: Path, to: Path) -> Path:
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(run, to, symlinks=True)
    return to


def part(root: Path, place: str) -> Path:
    return root / place / "best" if place.startswith("experts") else root / place


def trace(root: Path, place: str) -> dict[str, Any]:
    """All that a training leaves, without times: the bytes of its tensors, its manifest, and the curve in hex."""
    folder = part(root, place)
    manifest = read_manifest(folder)
    files = {name: facts for name, facts in manifest["files"].items() if name.endswith(".safetensors")}
    own = {key: value for key, value in manifest.items() if key not in ("timing", "files")}
    curves = {
        log.name: [[number, *map(exact, row.items())] for number, row in read_jsonl(log)]
        for log in sorted((root / "metrics" / place).glob("*.jsonl"))
    }
    assert curves and all(sha256_file(folder / name) == facts["sha256"] for name, facts in files.items())
    return {"files": files, "manifest": own, "curves": curves}


def exact(item: tuple[str, Any]) -> Any:
    name, value = item
    return (name, None if name == "rate" else float(value).hex())


def standing(at: Path) -> str | None:
    """Which version stands at a link, having been found sound; None where nothing stands."""
    if not (at / MANIFEST).is_file():
        return None
    read_manifest(at)
    return at.resolve().name


def newest(root: Path, verb: str) -> Path:
    """The newest state of the training that was under way."""
    links = [path for path in (root / "checkpoints" / PARTS[verb]).iterdir() if path.is_symlink()]
    return versions(min(links, key=lambda link: read_manifest(link.resolve())["done"]))[0]
