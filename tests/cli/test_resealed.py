"""Property: whatever a manifest with a right digest says, `inspect`, `plan` and `generate` answer or name its field."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from moesaic.artefacts.adapter import save_expert
from moesaic.artefacts.ffn import save_ffn
from moesaic.artefacts.router import load_router, save_router
from moesaic.artefacts.whole_model import save_whole
from moesaic.compose.mixture import save_mixture
from moesaic.files import MANIFEST, digest
from moesaic.files.fields import COMMON, MANIFESTS
from moesaic.model.classifier import Head, Shape
from moesaic.routing.guard import Guard
from moesaic.testing import tiny_decoder, toy_expert, toy_ffn

DROPPED = object()
VALUES = [DROPPED, None, 5, 1 << 40, [1], {}, "x"]
PARTS = {"mixture": ".", "router": "router", "expert": "experts/one", "base": "base"}
INNER = {
    "router": [f"selection.{key}" for key in ("kind", "k", "renormalise", "other")]
    + [
        f"shape.{key}"
        for key in ("num_features", "num_experts", "hidden", "dropout", "bias", "noise", "words", "groups", "x")
    ]
    + ["guard.shape", "guard.least", *(f"guard.shape.{key}" for key in ("num_features", "num_experts", "hidden", "x"))],
    "expert": [f"head.{key}" for key in ("labels", "dense", "bias", "parameters")],
    "mixture": [
        *("origins.base", "base.place", "base.fingerprint", "labels.one"),
        *("adopted.router", "adopted.experts", "adopted.router.abstain", "adopted.router.abstained_own"),
        "adopted.router.groups",
    ],
}
OTHER_SITES = ("ffn", "model", "labels")
FOR_TABLES = {"labels": ["a"], "dense": False, "bias": False, "parameters": 1, "kind": "linear", "router": {}}
"""The keys of a table that a manifest lacks, so that its field can be given another value."""


def fields(kind: str) -> list[str]:
    own = [name.removesuffix("?") for name in (*COMMON, *MANIFESTS[kind])]
    return [*own, "experts", "kind", "files", "format_version", *INNER.get(kind, [])]


def sealed(path: Path, manifest: dict) -> None:
    body = {field: value for field, value in manifest.items() if field != "digest"}
    path.write_text(json.dumps({**body, "digest": digest(body)}))


def reseal(mixture: Path, part: str, field: str, value: object) -> None:
    """Give one field of a part's manifest another value, and make every digest and hash right again."""
    path = mixture / part / MANIFEST
    manifest = json.loads(path.read_text())
    *above, name = field.split(".")
    table = manifest
    for key in above:
        table = table.setdefault(key, dict(FOR_TABLES))
    table.pop(name, None)
    if value is not DROPPED:
        table[name] = value
    sealed(path, manifest)
    if part != ".":
        outer = json.loads((mixture / MANIFEST).read_text())
        data = path.read_bytes()
        outer["files"][f"{part}/{MANIFEST}"] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        sealed(mixture / MANIFEST, outer)


@pytest.fixture(scope="module")
def copied(parts, tmp_path_factory) -> Path:
    """A mixture of adapters whose router has a guard."""
    folder = tmp_path_factory.mktemp("resealed")
    stored = load_router(parts.folder / "router")
    for name in ("router", "mixture"):
        (folder / name).mkdir()
    save_router(folder / "router", replace(stored, guard=Guard(32, 2, [3])), parts.fingerprint, {"seed": 0})
    where = {name: parts.folder / name for name in parts.experts}
    save_mixture(folder / "mixture", parts.folder / "base", where, folder / "router", {"seed": 0})
    return folder / "mixture"


@pytest.fixture(scope="module")
def others(parts, tmp_path_factory) -> Path:
    """A mixture of feed-forward blocks, of whole models and of classifiers: the folders `ffn`, `model` and `labels`."""
    folder, base = tmp_path_factory.mktemp("sites"), parts.decoder
    for seed, name in enumerate(("one", "two")):
        for site in OTHER_SITES:
            (folder / f"{site}-{name}").mkdir()
        save_ffn(folder / f"ffn-{name}", toy_ffn(base, seed, range(seed, 2)), parts.fingerprint, {"name": name})
        whole = tiny_decoder(seed, torch.float32, num_layers=2, vocab_size=parts.tokenizer.vocab_size)
        save_whole(folder / f"model-{name}", whole, parts.tokenizer, parts.fingerprint, {"name": name})
        head = Head.fresh(Shape(LABELS[name]), base.config.hidden_size, torch.Generator().manual_seed(seed))
        facts = {"name": name, "head": {"pool": "last", "family": "decoder", "trained": True}}
        save_expert(folder / f"labels-{name}", toy_expert(base, seed), parts.fingerprint, facts, head)
    own = {"labels": {"labels": {name: list(some) for name, some in LABELS.items()}, "pool": "last", "length": 32}}
    for site in OTHER_SITES:
        (folder / site).mkdir()
        where = {name: folder / f"{site}-{name}" for name in ("one", "two")}
        facts = own.get(site, {"site": site, "level": "sequence"})
        save_mixture(folder / site, parts.folder / "base", where, parts.folder / "router", {"name": site, **facts})
    return folder


LABELS = {"one": ("good", "bad"), "two": ("yes", "no", "perhaps")}


@contextmanager
def restored(folder: Path) -> Iterator[None]:
    """Put every manifest of a folder back at the end."""
    before = {path: path.read_bytes() for path in folder.rglob(MANIFEST)}
    try:
        yield
    finally:
        for path, data in before.items():
            path.write_bytes(data)


ANSWER = {"generate": ["two", "--max-new-tokens", "1"], "classify": ["two"]}
FIELDS = [(kind, field) for kind in PARTS for field in fields(kind)]


def refuse_internal(mixture: Path, kind: str, field: str, moesaic: Callable[..., Any], answer: str) -> None:
    """Fail where a value of a field leads to an error that does not name the file."""
    for value in VALUES:
        with restored(mixture):
            reseal(mixture, PARTS[kind], field, value)
            for verb in ("inspect", "plan", answer):
                code, _, err = moesaic(verb, mixture, *ANSWER.get(verb, []))
                assert code != 1 and "internal" not in err, (value, verb, err)
                other = "has no labels" in err  # a mixture without `labels` is one that generates
                assert code == 0 or str(mixture) in err or other, (value, verb, err)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "field"), FIELDS)
def test_a_field_of_any_value_is_read_or_named(kind, field, copied, moesaic):
    refuse_internal(copied, kind, field, moesaic, "generate")


@pytest.mark.slow
@pytest.mark.parametrize("site", OTHER_SITES)
@pytest.mark.parametrize(("kind", "field"), [one for one in FIELDS if one[0] in ("mixture", "expert")])
def test_a_field_of_any_value_is_read_or_named_at_every_site(kind, field, site, others, moesaic):
    refuse_internal(others / site, kind, field, moesaic, "classify" if site == "labels" else "generate")


def test_a_mixture_of_the_first_versions_is_described(copied, moesaic, parts, tmp_path):
    shutil.copytree(copied, tmp_path / "old")
    reseal(tmp_path / "old", ".", "site", DROPPED)
    reseal(tmp_path / "old", ".", "level", DROPPED)
    code, out, _ = moesaic("inspect", tmp_path / "old")
    assert code == 0 and "sequence by sequence, at every linear layer" in out
    assert moesaic("plan", tmp_path / "old")[0] == 0


@pytest.mark.parametrize("file", ["base/model.safetensors", "router/router.safetensors", "experts/one/manifest.json"])
def test_a_flipped_byte_of_a_part_is_found_though_the_mixture_lists_no_file(file, copied, moesaic, tmp_path):
    shutil.copytree(copied, tmp_path / "bare")
    reseal(tmp_path / "bare", ".", "files", {})
    data = bytearray((tmp_path / "bare" / file).read_bytes())
    data[-5] ^= 1
    (tmp_path / "bare" / file).write_bytes(data)
    code, _, err = moesaic("inspect", tmp_path / "bare")
    assert code == 4 and file.rpartition("/")[2] in err


def test_a_mixture_whose_experts_are_all_disabled_is_refused(copied, moesaic, tmp_path):
    shutil.copytree(copied, tmp_path / "all")
    reseal(tmp_path / "all", ".", "disabled", ["one", "two"])
    code, _, err = moesaic("generate", tmp_path / "all", "two")
    assert code == 4 and "disabled: no expert is left to choose: one, two" in err
