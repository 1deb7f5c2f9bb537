"""Does a file keep its length as long as it is leased, and is everybody let in afterwards?"""

import os
import signal
import subprocess
import sys
import time

import pytest

from moesaic.files.leases import leased

CUTTING = "import os, sys; print(flush=True); os.truncate(sys.argv[1], 3)"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    with path.open("rb") as opened:
        with leased(opened.fileno()) as held:
            if not held:
                pytest.skip("this system or this disk gives no leases (fcntl, F_SETLEASE)")
        yield opened


def test_who_would_cut_a_leased_file_off_waits_until_it_is_given_back(file):
    before = signal.getsignal(signal.SIGURG)
    with leased(file.fileno()) as held:
        other = subprocess.Popen([sys.executable, "-c", CUTTING, file.name], stdout=subprocess.PIPE)
        other.stdout.readline()  # it is about to
        time.sleep(0.2)
        assert held and other.poll() is None and os.fstat(file.fileno()).st_size == 10
    other.communicate(timeout=30)
    assert other.returncode == 0 and os.fstat(file.fileno()).st_size == 3
    assert signal.getsignal(signal.SIGURG) == before


def test_a_file_that_somebody_writes_to_is_not_leased(file):
    with open(file.name, "ab"), leased(file.fileno()) as held:
        assert not held
    with leased(file.fileno()) as held:
        assert held


def test_a_lease_is_given_back_whatever_happens(file):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), leased(file.fileno()):
            raise ZeroDivisionError
    os.close(os.open(file.name, os.O_WRONLY | os.O_NONBLOCK))  # an error where it would have to wait


def test_where_the_system_knows_no_leases_none_is_held(file, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with leased(file.fileno()) as held:
        assert not held
