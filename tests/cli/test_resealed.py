"""Property: whatever a manifest with a right digest says, `inspect`, `plan` and `generate` answer or name its field."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from moesaic.files import MANIFEST, digest
from moesaic.files.fields import COMMON, MANIFESTS

DROPPED = object()
VALUES = [DROPPED, None, 5, 1 << 40, [1], {}, "x"]
PARTS = {"mixture": ".", "router": "router", "expert": "experts/one", "base": "base"}
INNER = {
    "router": [f"selection.{key}" for key in ("kind", "k", "renormalise", "other")]
    + [f"shape.{key}" for key in ("num_features", "num_experts", "hidden", "dropout", "bias", "noise", "words", "x")],
    "expert": [f"head.{key}" for key in ("labels", "dense", "bias", "parameters")],
    "mixture": ["origins.base"],
}


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
        table = table.setdefault(key, {"labels": ["a"], "dense": False, "bias": False, "parameters": 1})
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
    folder = tmp_path_factory.mktemp("resealed") / "mixture"
    shutil.copytree(parts.folder / "mixture", folder)
    return folder


@contextmanager
def restored(folder: Path) -> Iterator[None]:
    """Put every manifest of a folder back at the end."""
    before = {path: path.read_bytes() for path in folder.rglob(MANIFEST)}
    try:
        yield
    finally:
        for path, data in before.items():
            path.write_bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "field"), [(kind, field) for kind in PARTS for field in fields(kind)])
def test_a_field_of_any_value_is_read_or_named(kind, field, copied, moesaic):
    for value in VALUES:
        with restored(copied):
            reseal(copied, PARTS[kind], field, value)
            for verb in (["inspect"], ["plan"], ["generate", "--max-new-tokens", "1"]):
                code, _, err = moesaic(verb[0], copied, *(["two"] if verb[0] == "generate" else []), *verb[1:])
                assert code != 1 and "internal" not in err, (value, verb, err)
                assert code == 0 or str(copied) in err, (value, verb, err)


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
