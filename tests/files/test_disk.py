import errno
import hashlib
import os
import shutil
import tempfile
from types import SimpleNamespace

import pytest

from moesaic.errors import StorageError
from moesaic.files import check_space, disk, sha256_file
from moesaic.files.disk import errors, make_all


def test_space_is_asked_for_with_some_to_spare(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 1050))
    check_space(tmp_path / "not" / "yet", 1000, "the expert")
    with pytest.raises(StorageError) as caught:
        check_space(tmp_path / "not" / "yet", 1001, "the expert")
    expected = (
        "no room for the expert; expected 1,052 bytes; got 1,050 bytes free; free some space or choose another folder"
    )
    assert str(caught.value) == f"{tmp_path}/not/yet: {expected}"
    assert caught.value.exit_code == 6


@pytest.mark.parametrize("name", ["EEXIST", "ENOTDIR", "EISDIR"])
def test_what_is_in_the_way_is_named(tmp_path, name):
    with pytest.raises(StorageError, match="in the way"), errors(tmp_path / "best"):
        raise OSError(getattr(errno, name), "so it is")


@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EIO", "EFBIG", "ENOENT"])
def test_every_refusal_says_where_and_what_to_do(tmp_path, name):
    number = getattr(errno, name)
    with pytest.raises(StorageError) as caught, errors(tmp_path / "best"):
        raise OSError(number, os.strerror(number))
    assert str(caught.value).startswith(f"{tmp_path / 'best'}: storage failed: [Errno {number}]")
    assert caught.value.hint and isinstance(caught.value.__cause__, OSError)


def test_a_disk_without_inodes_is_not_said_to_lack_bytes(tmp_path, monkeypatch):
    found = os.statvfs(tmp_path)
    full = SimpleNamespace(f_files=60, f_favail=0, f_frsize=found.f_frsize, f_bavail=99, f_blocks=99, f_bfree=99)
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    said = "device: no free inode: the disk holds as many files as it can; remove"
    with pytest.raises(StorageError, match=said) as told, disk.errors(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "bytes" not in str(told.value)


def test_folders_are_made_to_stay(tmp_path, monkeypatch):
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino))
    make_all(tmp_path / "a" / "b")
    make_all(tmp_path / "a" / "b")
    assert synced == [tmp_path.stat().st_ino, (tmp_path / "a").stat().st_ino]


def test_sha256_is_sha256(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256_file(tmp_path / "file") == hashlib.sha256(b"abc").hexdigest()
    with pytest.raises(StorageError, match="No such file"):
        sha256_file(tmp_path / "none")


def test_a_private_folder_is_its_users_alone_and_goes_in_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(ValueError), disk.private() as folder:
        assert folder.parent == tmp_path and folder.stat().st_mode & 0o777 == 0o700
        (folder / "weights").write_bytes(b"mine")
        raise ValueError
    assert not [*tmp_path.iterdir()]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(StorageError, match="storage failed"), disk.private():
        pass
