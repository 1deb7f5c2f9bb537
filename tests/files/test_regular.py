"""Is only a regular file opened, whatever a name leads to, and only in its folder or in the cache that it links to?"""

import os
import socket
from pathlib import Path

import pytest

from moesaic.errors import StorageError, WeightsError
from moesaic.files.regular import open_regular, placed


def read(path: Path) -> bytes:
    with open_regular(path) as file:
        return file.read()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "file").write_bytes(b"text")
    (tmp_path / "secret").write_bytes(b"secret")
    return tmp_path / "model"


def test_a_file_is_read_through_links_within_its_folder_and_to_it(folder, tmp_path):
    assert read(folder / "file") == b"text"
    (folder / "link").symlink_to("file")
    (folder / "deep").mkdir()
    (folder / "deep" / "file").write_bytes(b"deep")
    (folder / "down").symlink_to("deep/file")
    (tmp_path / "elsewhere").symlink_to(folder)
    assert read(folder / "link") == read(tmp_path / "elsewhere" / "link") == b"text"
    assert read(tmp_path / "elsewhere" / "down") == b"deep"


@pytest.mark.parametrize("target", ["../secret", "{tmp}/secret", "step/../../secret"])
def test_a_link_out_of_the_folder_is_refused(target, folder, tmp_path):
    (folder / "step").mkdir()
    (folder / "link").symlink_to(target.format(tmp=tmp_path))
    with pytest.raises(WeightsError, match=r"model/link: a link out .*; got \S+/secret; copy the file here"):
        read(folder / "link")


def bound(name: str) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(name)


KINDS = {"a folder": os.mkdir, "a pipe": os.mkfifo, "a socket": bound}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_regular_file_is_refused_and_never_waited_for(kind, folder, monkeypatch):
    monkeypatch.chdir(folder)
    KINDS[kind]("thing")
    with pytest.raises(WeightsError, match=f"thing: not a regular file; expected a file; got {kind}"):
        read(folder / "thing")


def test_a_device_is_refused():
    with pytest.raises(WeightsError, match="/dev/zero: not a regular file; expected a file; got a device"):
        read(Path("/dev/zero"))


def test_what_turned_into_a_pipe_while_it_was_looked_at_is_refused_and_never_waited_for(folder, monkeypatch):
    regular = os.stat(folder / "file")
    os.mkfifo(folder / "pipe")
    monkeypatch.setattr(Path, "stat", lambda path, **_: regular)
    with pytest.raises(WeightsError, match="pipe: not a regular file; expected a file; got a pipe"):
        read(folder / "pipe")


@pytest.mark.parametrize("target", ["nothing", "link", "file/deeper", "a" * 300])
def test_what_leads_nowhere_is_missing(target, folder):
    with pytest.raises(WeightsError, match="none: no such file"):
        read(folder / "none")
    (folder / "link").symlink_to(target)
    with pytest.raises(WeightsError, match="link: no such file"):
        read(folder / "link")


def test_a_name_with_a_zero_byte_is_none(folder):
    with pytest.raises(WeightsError, match="not a file name"):
        read(folder / "fi\0le")


def test_a_disk_that_fails_is_a_storage_error(folder, monkeypatch):
    def failing(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "open", failing)
    with pytest.raises(StorageError, match="Input/output error"):
        read(folder / "file")


# --- the cache of the hub ---------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path):
    """A cache of two repositories as huggingface_hub lays it out, and of one the snapshot."""
    for name in ("one", "two"):
        repository = tmp_path / "hub" / f"models--org--{name}"
        (repository / "snapshots" / "abc" / "deep").mkdir(parents=True)
        (repository / "blobs").mkdir()
        (repository / "blobs" / "123").write_bytes(name.encode())
    (tmp_path / "hub" / "blobs" / "ab").mkdir(parents=True)
    (tmp_path / "hub" / "blobs" / "ab" / "ab99").write_bytes(b"shared")
    (tmp_path / "secret").write_bytes(b"secret")
    return tmp_path / "hub" / "models--org--one" / "snapshots" / "abc"


@pytest.mark.parametrize(
    ("at", "target", "content"),
    [
        ("file", "../../blobs/123", b"one"),
        ("deep/file", "../../../blobs/123", b"one"),
        ("file", "../../../blobs/ab/ab99", b"shared"),
    ],
)
def test_a_snapshot_links_into_the_blobs_of_its_own_cache(at, target, content, hub, tmp_path):
    (hub / at).symlink_to(target)
    assert read(hub / at) == content
    assert placed(hub / at).name == Path(target).name


def test_a_blob_may_be_a_link_into_the_blobs_that_repositories_share(hub):
    (hub.parents[1] / "blobs" / "456").symlink_to("../../blobs/ab/ab99")
    (hub / "file").symlink_to("../../blobs/456")
    assert read(hub / "file") == b"shared"


@pytest.mark.parametrize(
    "target",
    ["../../../models--org--two/blobs/123", "../../../../secret", "../../blobs/../../../secret", "../../refs"],
)
def test_a_snapshot_links_nowhere_else(target, hub):
    (hub.parents[1] / "refs").write_bytes(b"abc")
    (hub / "file").symlink_to(target)
    with pytest.raises(WeightsError, match="a link out of its folder"):
        read(hub / "file")


def test_a_folder_that_only_looks_like_a_snapshot_has_no_blobs(tmp_path):
    (tmp_path / "mine" / "snapshots" / "abc").mkdir(parents=True)
    (tmp_path / "mine" / "blobs").mkdir()
    (tmp_path / "mine" / "blobs" / "123").write_bytes(b"text")
    (tmp_path / "mine" / "snapshots" / "abc" / "file").symlink_to("../../blobs/123")
    with pytest.raises(WeightsError, match="a link out of its folder"):
        read(tmp_path / "mine" / "snapshots" / "abc" / "file")
