"""Prepared folders and values: made once, found again, and made anew where they are damaged or of other content."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from moesaic.errors import DataError
from moesaic.runs.prepared import INDEX, Prepared, unchanged


class Making:
    """A `write` that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, folder: Path) -> dict[str, Any]:
        self.calls += 1
        (folder / "one.bin").write_bytes(b"12345")
        return {"rows": 5}


def aged(path: Path, content: str) -> Path:
    path.write_text(content)
    os.utime(path, (time.time() - 100, time.time() - 100))
    return path


def test_a_folder_is_made_once_and_found_by_its_key(tmp_path: Path) -> None:
    make = Making()
    for _ in range(3):
        at, facts = Prepared(tmp_path).folder("ab" * 32, make)
        assert facts == {"rows": 5} and (at / "one.bin").read_bytes() == b"12345"
    assert make.calls == 1
    other, _ = Prepared(tmp_path).folder("cd" * 32, make)
    inner, _ = Prepared(tmp_path).folder("ef" * 32, make, at)
    assert make.calls == 3 and other != at and inner.parent == at


def test_a_folder_that_is_not_whole_is_made_anew(tmp_path: Path) -> None:
    make = Making()
    at, _ = Prepared(tmp_path).folder("ab" * 32, make)
    (at / "one.bin").write_bytes(b"123")
    Prepared(tmp_path).folder("ab" * 32, make)
    assert make.calls == 2 and (at / "one.bin").read_bytes() == b"12345"


def test_a_folder_whose_making_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> dict[str, Any]:
        (folder / "one.bin").write_bytes(b"1")
        raise DataError("a bad row")

    with pytest.raises(DataError, match="a bad row"):
        Prepared(tmp_path).folder("ab" * 32, fail)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_only_what_was_used_stays(tmp_path: Path) -> None:
    old, make = Prepared(tmp_path), Making()
    left = [old.folder(key * 32, make)[0] for key in ("ab", "cd")]
    now = Prepared(tmp_path)
    now.folder("ab" * 32, make)
    now.tidy()
    assert [path.is_dir() for path in left] == [True, False] and not [*tmp_path.glob(".*")]


def test_a_file_is_hashed_again_only_where_something_about_it_changed(tmp_path: Path, monkeypatch) -> None:
    path, room = aged(tmp_path / "rows.jsonl", "one"), tmp_path / "kept"
    first = Prepared(room).hash_of(path)
    with monkeypatch.context() as patch:
        patch.setattr("moesaic.runs.prepared.sha256_file", lambda path: "read")
        assert Prepared(room).hash_of(path) == first
        os.utime(path, (1, 1))
        assert Prepared(room).hash_of(path) == "read"
    aged(path, "two")
    assert Prepared(room).hash_of(path) != first


def test_the_hash_of_a_file_that_has_just_been_written_is_not_trusted(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("one")
    Prepared(tmp_path / "kept").hash_of(path)
    monkeypatch.setattr("moesaic.runs.prepared.sha256_file", lambda path: "read")
    assert Prepared(tmp_path / "kept").hash_of(path) == "read"


def test_a_value_is_computed_once_also_after_the_index_is_damaged(tmp_path: Path) -> None:
    calls = list[int]()

    def compute() -> None:
        calls.append(1)

    for _ in range(2):
        assert Prepared(tmp_path).value(["what", 1], compute) is None
    assert len(calls) == 1
    (tmp_path / INDEX).write_text("{")
    Prepared(tmp_path).value(["what", 1], compute)
    assert len(calls) == 2
    (tmp_path / INDEX).write_text((tmp_path / INDEX).read_text().replace('"version": "', '"version": "0'))
    Prepared(tmp_path).value(["what", 1], compute)
    assert len(calls) == 3


def test_a_file_that_changed_meanwhile_is_refused(tmp_path: Path) -> None:
    path, room = aged(tmp_path / "rows.jsonl", "one"), Prepared(tmp_path / "kept")
    known = {path: room.hash_of(path)}
    unchanged(known, room.hash_of)
    aged(path, "twofold")
    with pytest.raises(DataError, match="changed while it was read"):
        unchanged(known, room.hash_of)
