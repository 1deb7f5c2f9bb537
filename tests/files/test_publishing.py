import errno
import os
import shutil
import subprocess
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from moesaic.errors import StorageError
from moesaic.files import gather, is_published, publish, read_manifest, write_manifest
from moesaic.files import versions as listed


def fill(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "deep").mkdir()
        (folder / "weights.bin").write_text(text)
        (folder / "deep" / "more.bin").write_text(text)
        write_manifest(folder, {"kind": "lora", "text": text})

    return write


def loaded(at: Path) -> str | None:
    """What a reader gets: the proven text of the version that stands; None where nothing was ever published."""
    if not os.path.lexists(at):
        return None
    text = read_manifest(at, "lora")["text"]
    assert (at / "weights.bin").read_text() == (at / "deep" / "more.bin").read_text() == text
    return text


def versions(root: Path) -> list[str]:
    return sorted(os.listdir(root / ".versions"))


def test_the_link_is_relative_and_the_version_is_returned(tmp_path):
    version = publish(tmp_path / "experts" / "math" / "best", fill("one"))
    at = tmp_path / "experts" / "math" / "best"
    assert os.readlink(at) == os.path.join(".versions", "best-000001")
    assert version == at.parent / ".versions" / "best-000001"
    assert loaded(at) == "one"


def test_each_version_replaces_the_one_before(tmp_path):
    for text in "one", "two", "three":
        publish(tmp_path / "best", fill(text))
        assert loaded(tmp_path / "best") == text
    assert versions(tmp_path) == ["best-000003"]


def test_keep_counts_older_versions_and_pointers_do_not_mix(tmp_path):
    for text in "abcd":
        publish(tmp_path / "best", fill(text), keep=1)
        publish(tmp_path / "best-of-last", fill(text.upper()))
    assert versions(tmp_path) == ["best-000003", "best-000004", "best-of-last-000004"]
    assert loaded(tmp_path / "best") == "d" and loaded(tmp_path / "best-of-last") == "D"


def test_a_moved_tree_loads(tmp_path):
    publish(tmp_path / "here" / "best", fill("one"))
    shutil.copytree(tmp_path / "here", tmp_path / "there", symlinks=True)
    shutil.rmtree(tmp_path / "here")
    assert loaded(tmp_path / "there" / "best") == "one"
    publish(tmp_path / "there" / "best", fill("two"))
    assert loaded(tmp_path / "there" / "best") == "two"


def test_a_relative_path_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    publish(Path("best"), fill("one"))
    assert loaded(tmp_path / "best") == "one"


def test_a_failure_in_write_leaves_the_old_version_and_nothing_else(tmp_path):
    publish(tmp_path / "best", fill("old"))

    def fail(folder: Path) -> None:
        (folder / "half").write_text("...")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish(tmp_path / "best", fail)
    assert loaded(tmp_path / "best") == "old" and versions(tmp_path) == ["best-000001"]


def test_files_get_the_umask_s_permissions(tmp_path):
    def private(folder: Path) -> None:
        os.close(os.open(folder / "weights.bin", os.O_CREAT, 0o600))

    before = os.umask(0o027)
    try:
        version = publish(tmp_path / "best", private)
    finally:
        os.umask(before)
    assert (version / "weights.bin").stat().st_mode & 0o777 == 0o640
    assert version.stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_was_not_published_is_not_replaced(tmp_path, kind):
    at = tmp_path / "best"
    {"folder": at.mkdir, "file": at.touch, "link": lambda: at.symlink_to(tmp_path)}[kind]()
    with pytest.raises(StorageError, match=r"did not publish this.*move it away"):
        publish(at, fill("new"))
    assert os.listdir(tmp_path) == ["best"]


def test_a_disk_without_links_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", refuse)
    with pytest.raises(StorageError, match=r"symbolic links cannot be made here.*use a file system"):
        publish(tmp_path / "best", lambda _: pytest.fail("wrote"))
    assert versions(tmp_path) == []


@pytest.fixture
def calls(monkeypatch) -> list[tuple]:
    """Every fsync by the inode, every rename by the inode and the new name, every folder removed by its name."""
    seen: list[tuple] = []

    def record(name: str, key: Callable[..., tuple]) -> None:
        real = getattr(os, name)

        def recording(*args, **kwargs):
            seen.append((name, *key(*args)))
            return real(*args, **kwargs)

        monkeypatch.setattr(os, name, recording)

    record("fsync", lambda fd: (os.fstat(fd).st_ino,))
    record("replace", lambda old, new: (os.lstat(old).st_ino, str(new)))
    record("rmdir", lambda path: (str(path),))
    return seen


def test_the_order_survives_a_power_cut(tmp_path, calls):
    at = tmp_path / "best"
    old = publish(at, fill("old"))
    inodes = {os.lstat(path).st_ino for path in [old, *old.rglob("*")]}
    calls.clear()
    new = publish(at, fill("new"))
    inside = {os.lstat(path).st_ino for path in [new, *new.rglob("*")]}
    assert len(inside) == 5 and not inside & inodes

    renamed = calls.index(("replace", os.lstat(new).st_ino, str(new)))
    swung = calls.index(("replace", os.lstat(at).st_ino, str(at)))
    assert inside <= {call[1] for call in calls[:renamed] if call[0] == "fsync"}
    assert ("fsync", os.lstat(new.parent).st_ino) in calls[renamed:swung]
    assert calls[swung + 1] == ("fsync", os.lstat(tmp_path).st_ino)
    gone = [place for place, call in enumerate(calls) if call[0] == "replace" and call[1] in inodes]
    assert gone and min(gone) > swung + 1
    assert "rmdir" not in [call[0] for call in calls[: swung + 2]]


@pytest.mark.parametrize("fault", ["kill", "ENOSPC", "EIO"])
@pytest.mark.parametrize(("before", "keep"), [("", 0), ("a", 0), ("ab", 1)])
def test_at_every_call_a_fault_leaves_the_old_or_the_new(ram, crash, fault, before, keep):
    old, outcomes = before[-1:] or None, set()
    for call in count(1):
        root = ram / str(call)
        root.mkdir()
        for text in before:
            publish(root / "best", fill(text), keep=keep)
        status = crash(do="publish", root=root, text="new", keep=keep, call=call, fault=fault)
        if status is None:
            break
        outcomes.add((status, found := loaded(root / "best")))
        if status == 6 and found == old and (root / ".versions").exists():
            assert not [name for name in versions(root) if name.startswith(".new-")]
        standing = os.readlink(root / "best") if found else ""
        publish(root / "best", fill("next"), keep=keep)
        assert loaded(root / "best") == "next" and os.readlink(root / "best") > standing
        assert len(versions(root)) <= 1 + keep and versions(root)[-1] == os.readlink(root / "best").split("/")[1]
    bad, tidied = (-9, set()) if fault == "kill" else (6, {(0, "new")})  # what cannot be tidied is left, and no error
    assert outcomes == {(bad, old), (bad, "new")} | tidied
    assert call > 20


def test_a_version_that_the_link_never_reached_is_replaced(tmp_path):
    publish(tmp_path / "best", fill("old"))
    shutil.copytree(tmp_path / "best", tmp_path / ".versions" / "best-000002")
    (tmp_path / ".versions" / ".new-999999999-best").mkdir()
    (tmp_path / ".versions" / f".new-{os.getppid()}-best").mkdir()
    (tmp_path / ".versions" / ".new-999999999-last").mkdir()

    def write(folder: Path) -> None:
        assert "best-000002" not in versions(tmp_path), "its room may be needed"
        fill("new")(folder)

    publish(tmp_path / "best", write, keep=1)
    kept = [".new-999999999-last", f".new-{os.getppid()}-best", "best-000001", "best-000003"]
    assert versions(tmp_path) == sorted(kept)
    assert loaded(tmp_path / "best") == "new"


def test_a_limit_on_file_size_is_a_storage_error(ram, crash):
    publish(ram / "best", fill("old"))
    assert crash(do="publish", root=ram, text="new" * 1000, limit=2000) == 6
    assert loaded(ram / "best") == "old" and versions(ram) == ["best-000001"]


def test_a_full_disk_names_the_path_and_the_bytes(tmpfs):
    publish(tmpfs / "best", fill("old"))
    with pytest.raises(StorageError) as caught:
        publish(tmpfs / "best", lambda folder: (folder / "weights.bin").write_bytes(bytes(1 << 20)) and None)
    assert caught.value.path == tmpfs / "best"
    assert "more than" in caught.value.expected and caught.value.got == "0 bytes free"
    assert "free some space" in str(caught.value)
    assert loaded(tmpfs / "best") == "old" and versions(tmpfs) == ["best-000001"]


def test_a_read_only_disk_says_so(tmpfs):
    publish(tmpfs / "best", fill("old"))
    subprocess.run(["mount", "-o", "remount,ro", str(tmpfs)], check=True)
    with pytest.raises(StorageError, match="read-only: choose another folder"):
        publish(tmpfs / "best", fill("new"))
    assert loaded(tmpfs / "best") == "old"


def test_a_name_that_is_too_long_or_a_file_in_the_way_is_a_storage_error(tmp_path):
    (tmp_path / "file").touch()
    for at in tmp_path / ("x" * 255), tmp_path / "file" / "best":
        with pytest.raises(StorageError):
            publish(at, fill("new"))


def test_the_versions_that_stand_are_listed_the_linked_one_first(tmp_path):
    assert listed(tmp_path / "best") == []
    for text in "abc":
        publish(tmp_path / "best", fill(text), keep=2)
    assert [path.name for path in listed(tmp_path / "best")] == ["best-000003", "best-000002", "best-000001"]
    (tmp_path / "best").unlink()
    (tmp_path / "best").symlink_to(".versions/best-000002")
    assert [path.name for path in listed(tmp_path / "best")] == ["best-000002", "best-000003", "best-000001"]


# --- what is taken over -----------------------------------------------------------------------------------------------


def take(*files: Path) -> Callable[[Path], None]:
    return lambda folder: gather({f"deep/{file.name}": file for file in files}, folder)


def test_what_is_published_is_taken_over_without_a_second_copy_and_outlives_its_version(tmp_path):
    publish(tmp_path / "base", fill("one"))
    weights = tmp_path / "base" / "weights.bin"
    version = publish(tmp_path / "mixture", take(weights, tmp_path / "base" / "none"))
    assert is_published(weights) and os.listdir(version / "deep") == ["weights.bin"]
    assert (version / "deep" / "weights.bin").samefile(weights)
    publish(tmp_path / "base", fill("two"))
    assert (version / "deep" / "weights.bin").read_text() == "one" and weights.read_text() == "two"


def test_what_somebody_may_write_into_is_copied(tmp_path):
    (tmp_path / "base").mkdir()
    fill("one")(tmp_path / "base")
    weights = tmp_path / "base" / "weights.bin"
    version = publish(tmp_path / "mixture", take(weights))
    weights.write_text("two")
    assert not is_published(weights) and (version / "deep" / "weights.bin").read_text() == "one"


@pytest.mark.parametrize("number", [errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOTSUP])
def test_where_the_disk_has_no_such_links_all_is_copied(number, tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    publish(tmp_path / "base", fill("one"))
    version = publish(tmp_path / "mixture", take(tmp_path / "base" / "weights.bin"))
    copied = version / "deep" / "weights.bin"
    assert copied.read_text() == "one" and not copied.samefile(tmp_path / "base" / "weights.bin")
