import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rehearsal import PARTS, Order, copy, trace, write_recipe

import moesaic

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def ram() -> Iterator[Path]:
    """A folder in memory where there is one: thousands of fsyncs cost nothing there."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def recipe(ram: Path) -> Path:
    return write_recipe(ram)


@pytest.fixture(scope="session")
def order(recipe: Path) -> Iterator[Order]:
    """Has a forked child do a verb, and tells how it ended."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    path = os.pathsep.join([str(Path(moesaic.__file__).parents[1]), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, str(HERE / "dying.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdin and server.stdout

        def ask(verb: str, root: Path, **how: Any) -> dict[str, Any]:
            asked = {"verb": verb, "root": str(root), "recipe": str(recipe), **how}
            print(json.dumps(asked), file=server.stdin, flush=True)
            return json.loads(server.stdout.readline())

        yield ask
        server.stdin.close()


@pytest.fixture(scope="session")
def ready(ram: Path, order: Order) -> dict[str, Path]:
    """Of each verb, a run directory in which all is done that it builds on; and `done`, with everything."""
    found = {}
    at = ram / "start"
    at.mkdir()
    for verb in ("pretrain", "expert", "router"):
        found[verb] = ram / f"before-{verb}"
        copy(at, found[verb])
        how = {"experts": ["adds", "says"]} if verb == "expert" else {}
        answer = order(verb, at, **how)
        assert answer["status"] == 0, answer
    found["done"] = at
    return found


@pytest.fixture(scope="session")
def unbroken(ready: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """What each verb leaves when nothing disturbs it."""
    return {verb: trace(ready["done"], place) for verb, place in PARTS.items()}
