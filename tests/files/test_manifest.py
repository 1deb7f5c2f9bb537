import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import moesaic
from moesaic.errors import WeightsError
from moesaic.files import MANIFEST, digest, read_manifest, sha256_file, write_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "artefact"
    (folder / "deep").mkdir(parents=True)
    (folder / "weights.bin").write_bytes(bytes(range(64)))
    (folder / "deep" / "tokens.bin").write_bytes(b"tokens")
    write_manifest(folder, {"kind": "lora", "seed": 3, "metrics": {"loss": 0.1}})
    return folder


def forge(folder: Path, **fields: Any) -> None:
    """Writes a manifest whose digest is right whatever it says."""
    manifest = {**json.loads((folder / MANIFEST).read_text()), **fields}
    del manifest["digest"]
    (folder / MANIFEST).write_text(json.dumps(manifest | {"digest": digest(manifest)}))


def test_it_says_what_was_written(folder):
    manifest = read_manifest(folder, "lora")
    assert list(manifest) == ["format_version", "package_version", "kind", "seed", "metrics", "files"]
    assert manifest["package_version"] == moesaic.__version__ and manifest["metrics"] == {"loss": 0.1}
    sealed = {"sha256": sha256_file(folder / "weights.bin"), "bytes": 64}
    assert manifest["files"]["weights.bin"] == sealed and list(manifest["files"]) == ["deep/tokens.bin", "weights.bin"]
    assert read_manifest(folder) == read_manifest(folder, ("ffn", "lora"), verify=False) == manifest


def test_its_own_fields_cannot_be_overwritten(folder):
    for field in "format_version", "package_version", "files", "digest":
        with pytest.raises(TypeError, match=field):
            write_manifest(folder, {field: 1})


def test_every_flipped_bit_and_every_cut_is_found(folder):
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        good = path.read_bytes()
        for place in range(len(good)):
            flipped = bytearray(good)
            flipped[place] ^= 1 << place % 8
            for bad in bytes(flipped), good[:place]:
                path.write_bytes(bad)
                if bad.strip() == good.strip():  # the newline at the end of the manifest
                    continue
                with pytest.raises(WeightsError, match=path.name):
                    read_manifest(folder)
        path.write_bytes(good)
    read_manifest(folder)


def test_a_damaged_file_is_named_with_both_digests(folder):
    good = sha256_file(folder / "weights.bin")
    (folder / "weights.bin").write_bytes(bytes(64))
    with pytest.raises(WeightsError) as caught:
        read_manifest(folder)
    error = caught.value
    assert (error.path, error.field) == (folder / "weights.bin", "sha256")
    assert (error.expected, error.got) == (good, sha256_file(folder / "weights.bin"))
    read_manifest(folder, verify=False)
    (folder / "weights.bin").write_bytes(bytes(63))
    with pytest.raises(WeightsError, match=r"bytes.*expected 64; got 63"):
        read_manifest(folder, verify=False)


def test_missing_and_extra_files(folder):
    (folder / "notes.txt").touch()
    read_manifest(folder)
    (folder / "weights.bin").unlink()
    with pytest.raises(WeightsError, match=r"weights\.bin: the file is missing; copy"):
        read_manifest(folder)


def test_no_manifest_and_a_broken_link_give_a_hint(tmp_path):
    (tmp_path / "best").symlink_to(".versions/best-000001")
    for place in tmp_path, tmp_path / "best", tmp_path / "nowhere":
        with pytest.raises(WeightsError, match=r"no manifest\.json; name a folder"):
            read_manifest(place)


def test_the_error_names_the_version_that_was_read(folder, tmp_path):
    (tmp_path / "best").symlink_to("artefact")
    (folder / "weights.bin").unlink()
    with pytest.raises(WeightsError) as caught:
        read_manifest(tmp_path / "best")
    assert caught.value.path == folder / "weights.bin"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format_version": 2}, "format_version.*expected 1 to 1; got 2; upgrade moesaic"),
        ({"format_version": "1"}, "format_version"),
        ({"format_version": None}, "format_version"),
        ({"kind": "ffn"}, "kind: another kind of artefact; expected lora or tt_lora; got ffn"),
        ({"kind": ["lora"]}, "kind"),
        ({"files": None}, "files: not a table"),
        ({"files": {"weights.bin": None}}, r"weights\.bin"),
        ({"files": {"../outside.bin": {}}}, r"a file inside its folder: \.\./outside\.bin"),
        ({"files": {"/etc/hostname": {}}}, "a file inside its folder"),
        ({"files": {"a\0b": {}}}, "a file inside its folder"),
        ({"files": {"link.bin": {}}}, "a file inside its folder"),
        ({"files": {"loop": {}}}, "loop: the file is missing"),
        ({"files": {"pipe": {}}}, "pipe: the file is missing"),
        ({"files": {"deep": {}}}, "deep: the file is missing"),
    ],
)
def test_a_manifest_that_lies_is_refused(folder, fields, message):
    (folder.parent / "outside.bin").touch()
    (folder / "link.bin").symlink_to(folder.parent / "outside.bin")
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "pipe")
    forge(folder, **fields)
    with pytest.raises(WeightsError, match=message):
        read_manifest(folder, ("lora", "tt_lora"))


def test_a_file_name_that_no_disk_takes_is_an_error_of_ours(folder):
    for length, message in (300, "the file is missing"), (5000, "a file inside its folder: xxx"):
        forge(folder, files={"x" * length: {}})
        with pytest.raises(WeightsError, match=message):
            read_manifest(folder)


def test_a_copy_is_as_good(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    assert read_manifest(tmp_path / "copy") == read_manifest(folder)


def test_a_folder_in_the_cache_of_the_hub_is_verified_through_its_links(folder, tmp_path):
    """By its name every file lies in the folder; only what it links to may lie in the blobs of the same cache."""
    repository = tmp_path / "hub" / "models--org--name"
    (repository / "snapshots").mkdir(parents=True)
    (repository / "blobs").mkdir()
    snapshot = shutil.copytree(folder, repository / "snapshots" / "abc")
    shutil.move(snapshot / "weights.bin", repository / "blobs" / "12")
    (snapshot / "weights.bin").symlink_to("../../blobs/12")
    facts = read_manifest(snapshot)["files"]
    forge(snapshot, files={**facts, "../../blobs/12": facts["weights.bin"]})
    with pytest.raises(WeightsError, match="not a file inside its folder: ../../blobs/12"):
        read_manifest(snapshot)
    forge(snapshot, files=facts)
    (snapshot / "weights.bin").unlink()
    (snapshot / "weights.bin").symlink_to(folder / "weights.bin")
    with pytest.raises(WeightsError, match=r"not a file inside its folder: weights\.bin"):
        read_manifest(snapshot)
