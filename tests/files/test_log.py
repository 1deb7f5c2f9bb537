import errno
import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from moesaic.errors import DataError, StorageError
from moesaic.files import JsonlWriter, read_jsonl
from moesaic.files.locking import turn


def test_rows_come_back_with_their_lines(tmp_path):
    path = tmp_path / "deep" / "log.jsonl"
    rows = [{"step": 0}, {"text": "two\nlines\u2028and more"}, {"torn": "\ud800"}]
    with JsonlWriter(path) as log:
        for row in rows:
            log.append(row)
    assert list(read_jsonl(path)) == list(enumerate(rows, 1))
    with JsonlWriter(path) as log:
        log.append({"step": 3})
    assert [number for number, _ in read_jsonl(path)] == [1, 2, 3, 4]


def test_it_is_on_the_disk_when_closed(tmp_path, monkeypatch):
    log = JsonlWriter(tmp_path / "log.jsonl")
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino))
    log.close()
    assert synced == [(tmp_path / "log.jsonl").stat().st_ino, tmp_path.stat().st_ino]


@pytest.mark.parametrize("tail", [b"", b'{"step": 1', b"12", b"\0" * 10, b'{"text": "' + b"x" * 300_000])
@pytest.mark.parametrize("head", [b"", b'{"step": 0}\n'])
def test_a_torn_last_line_is_passed_over_and_cut_off(tmp_path, head, tail):
    path = tmp_path / "log.jsonl"
    path.write_bytes(head + tail)
    assert len(list(read_jsonl(path))) == bool(head)
    with JsonlWriter(path) as log:
        log.append({"step": 1})
    assert path.read_bytes() == head + b'{"step": 1}\n'


def test_a_row_is_one_write_and_a_failed_one_leaves_no_trace(tmp_path, monkeypatch):
    sizes: list[int] = []
    real = os.write

    def write(fd: int, data: bytes) -> int:
        sizes.append(len(data))
        if len(sizes) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data[:4] if len(sizes) == 2 else data)

    monkeypatch.setattr(os, "write", write)
    with JsonlWriter(tmp_path / "log.jsonl") as log:
        log.append({"step": 0})
        with pytest.raises(StorageError, match=r"log\.jsonl.*No space left.*bytes free"):
            log.append({"step": 1})
        log.append({"step": 2})
    assert sizes == [12, 12, 8, 12]
    assert [row["step"] for _, row in read_jsonl(tmp_path / "log.jsonl")] == [0, 2]


@pytest.mark.parametrize("head", [b"", b'{"step": 0}\n'])
def test_a_last_line_that_lacks_only_its_break_is_a_row_and_stays(tmp_path, head):
    """An editor that saves no final line break has torn nothing."""
    path = tmp_path / "log.jsonl"
    path.write_bytes(head + b'{"edited": 1}')
    assert [row for _, row in read_jsonl(path)][-1] == {"edited": 1}
    with JsonlWriter(path) as log:
        log.append({"step": 2})
    assert path.read_bytes() == head + b'{"edited": 1}\n{"step": 2}\n'


@pytest.mark.parametrize("call", ["open", "append"])
def test_a_row_that_another_process_is_just_writing_is_waited_for(tmp_path, call):
    """Another opening of the file stands for another process: the system keeps their locks apart, too."""
    path = tmp_path / "log.jsonl"
    with JsonlWriter(path) as log, path.open("ab", buffering=0) as other, ThreadPoolExecutor(1) as pool:
        with turn(other):
            other.write(b'{"step": ')
            done = pool.submit(lambda: JsonlWriter(path).close() if call == "open" else log.append({"step": 1}))
            with pytest.raises(TimeoutError):
                done.result(timeout=0.05)
            other.write(b"0}\n")
        done.result(timeout=10)
    assert [row["step"] for _, row in read_jsonl(path)] == ([0] if call == "open" else [0, 1])


def test_what_another_process_left_torn_is_cut_off_before_the_next_row(tmp_path):
    path = tmp_path / "log.jsonl"
    with JsonlWriter(path) as log:
        log.append({"step": 0})
        with path.open("ab") as other:
            other.write(b'{"step": 1, "text": "killed in the mid')
        log.append({"step": 2})
    assert [row["step"] for _, row in read_jsonl(path)] == [0, 2]


def test_not_a_number_is_refused_before_it_is_written(tmp_path):
    with JsonlWriter(tmp_path / "log.jsonl") as log, pytest.raises(ValueError, match="JSON compliant"):
        log.append({"loss": float("inf")})
    assert (tmp_path / "log.jsonl").read_bytes() == b""


@pytest.mark.parametrize("line", [b"[1]", b"", b"{", b'{"a": NaN}', b'{"a": 1, "a": 2}', b"\xff"])
def test_a_bad_line_is_named(tmp_path, line):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 0}\n' + line + b'\n{"step": 2}\n')
    rows = read_jsonl(path)
    assert next(rows) == (1, {"step": 0})
    with pytest.raises(DataError, match=r"log\.jsonl:2: not usable"):
        next(rows)


def test_a_missing_log_is_named(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        next(read_jsonl(tmp_path / "log.jsonl"))


def test_kill_9_loses_no_row_and_tears_none(ram, crash):
    path = ram / "log.jsonl"
    for _ in range(5):
        pid = crash(do="log", root=ram, leave=True)
        while not path.exists() or path.stat().st_size < 5000:
            time.sleep(0.001)
        assert crash(kill=pid) == -9
        steps = [row["step"] for _, row in read_jsonl(path)]
        assert steps == list(range(len(steps))) and len(steps) > 50
        JsonlWriter(path).close()
        assert [row["step"] for _, row in read_jsonl(path)] == steps
        path.unlink()


def test_it_is_cut_to_what_a_state_knows_of(tmp_path):
    with JsonlWriter(tmp_path / "log.jsonl") as log:
        log.append({"step": 1})
        size = (tmp_path / "log.jsonl").stat().st_size
        log.append({"step": 2})
        assert log.cut(size) and not log.cut(size + 1)
        log.append({"step": 3})
    assert [row["step"] for _, row in read_jsonl(tmp_path / "log.jsonl")] == [1, 3]
