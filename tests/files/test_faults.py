import errno
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from moesaic.errors import RecipeError, StorageError
from moesaic.files import JsonlWriter, disk, faults, gather, publish, write_json

ROOM = Path(faults.__file__).parent


@pytest.mark.parametrize("kind", ["EIO", "ENOSPC", "EROFS"])
@pytest.mark.parametrize("point", faults.DISK)
def test_every_call_that_changes_the_disk_can_be_broken(point, kind, tmp_path, monkeypatch):
    """Among what is done here, each kind of call occurs; the error is the system's own, with its advice."""

    def work() -> None:
        disk.unlink(tmp_path / "nothing")
        write_json(tmp_path / "new" / "value.json", {"a": 1})
        with JsonlWriter(tmp_path / "new" / "log.jsonl") as log:
            log.append({"step": 1})
            log.cut(0)
        (tmp_path / "private").mkdir()
        (tmp_path / "private" / "file").write_bytes(b"x")
        (tmp_path / "private" / "file").chmod(0o600)
        with disk.errors(tmp_path):
            disk.sync_tree(tmp_path / "private")
        publish(tmp_path / "best", lambda folder: disk.create(folder / "file", b"abc"))
        publish(tmp_path / "next", lambda folder: gather({"file": tmp_path / "best" / "file"}, folder))

    monkeypatch.setattr(faults, "armed", faults.parse(f"{point}:1:{kind}"))
    with pytest.raises((StorageError, OSError)) as caught:
        work()
    number = getattr(errno, kind)
    found = caught.value.__cause__ if isinstance(caught.value, StorageError) else caught.value
    assert isinstance(found, OSError) and found.errno == number


def test_the_visit_that_was_asked_for_is_the_one_that_fails(monkeypatch):
    monkeypatch.setattr(faults, "armed", faults.parse("disk:3:EIO"))
    for point in ("mkdir", "step", "fsync", "loss"):
        assert faults.reach(point) is None
    with pytest.raises(OSError, match="Input/output"):
        faults.reach("rename")
    assert faults.reach("rename") is None, "once"


def test_values_signals_and_no_memory(monkeypatch):
    monkeypatch.setattr(faults, "armed", faults.parse("loss:1:nan"))
    assert faults.reach("loss") == "nan"
    monkeypatch.setattr(faults, "armed", faults.parse("step:1:oom"))
    with pytest.raises(MemoryError):
        faults.reach("step")
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    monkeypatch.setattr(faults, "armed", faults.parse("step:1:term"))
    faults.reach("step")
    signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]


@pytest.mark.parametrize(
    "text", ["", "disk", "disk:1", "disc:1:EIO", "disk:x:EIO", "disk:-1:EIO", "disk:1:EIEIO", ":::"]
)
def test_what_is_no_fault_is_refused(text):
    with pytest.raises(RecipeError, match="MOESAIC_FAULT: not a fault; expected POINT:VISIT:KIND") as caught:
        faults.parse(text)
    assert caught.value.exit_code == 2


def test_without_the_variable_a_point_calls_nothing():
    script = (
        "import sys; from moesaic.files import faults; events = [];"
        "sys.setprofile(lambda frame, event, argument: events.append(event)); faults.reach('write');"
        "sys.setprofile(None); print(*events)"
    )
    environment = {"PYTHONPATH": str(ROOM.parents[1]), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["call", "return", "c_call"]  # the last one is the end of watching


def test_the_variable_is_read_by_a_real_process(tmp_path):
    script = "import sys; from moesaic.files import write_json; write_json(__import__('pathlib').Path('v.json'), {})"
    environment = {"PYTHONPATH": str(ROOM.parents[1]), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**environment, faults.VARIABLE: "fsync:1:EIO"},
        capture_output=True,
        text=True,
    )
    assert "StorageError" in done.stderr and "the disk is failing" in done.stderr
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env={**environment, faults.VARIABLE: "write:1:kill"}
    )
    assert done.returncode == -signal.SIGKILL
