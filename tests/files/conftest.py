import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import moesaic

HERE = Path(__file__).parent


@pytest.fixture
def ram(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: thousands of fsyncs cost nothing there."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def crash() -> Iterator[Callable[..., int | None]]:
    """Has a forked child do something, perhaps with a fault, and returns its exit status (negative: the signal).

    None says that there is no such call to break; of a child to `leave` running it returns the number, to `kill` it.
    """
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    path = os.pathsep.join([str(Path(moesaic.__file__).parents[1]), *sys.path])
    command = [sys.executable, str(HERE / "crashing.py")]
    pipe = subprocess.PIPE
    environment = {**os.environ, "PYTHONPATH": path}
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as server:
        assert server.stdin and server.stdout

        def ask(**order: Any) -> int | None:
            print(json.dumps(order, default=str), file=server.stdin, flush=True)
            return json.loads(server.stdout.readline())

        yield ask
        server.stdin.close()


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A real disk of 256 KiB, where this process may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=256k", "none", str(place)]
    if not mount or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("may not mount here")
    yield place
    subprocess.run(["umount", str(place)], check=True)
