"""A process that has torch imported and forks children, which train a small mixture and come to grief on the way.

Knows nothing about what should be left behind: the tests look at that. Speaks JSON, a line per order and answer.
"""

import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

import tokenizers  # noqa: F401
import torch
import torch._dynamo  # the optimiser imports it: once here, not in every child

from moesaic import stages
from moesaic.errors import Interrupted, MoesaicError
from moesaic.files import faults
from moesaic.recipe import read


class Warnings:
    """A Progress that writes down the warnings."""

    def __init__(self, at: Path):
        self.at = at

    def warn(self, text: str) -> None:
        with self.at.open("a") as file:
            print(text, file=file)

    def note(self, text: str) -> None: ...
    def begin(self, task: str, steps: int) -> None: ...
    def row(self, task: str, row: dict[str, Any]) -> None: ...
    def end(self, task: str, text: str) -> None: ...


def obey(order: dict[str, Any]) -> int:
    """Does what the order says; returns how often the armed point was reached."""
    torch.seed()  # whatever else a process drew
    root = Path(order["root"])
    recipe = read(order["recipe"], order.get("overrides", ()))
    how = {key: order[key] for key in ("strict", "restart") if key in order}
    told = Warnings(root.with_name(root.name + ".warnings"))
    if limit := order.get("memory"):
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + limit, size + limit))
    faults.armed = faults.parse(order["fault"]) if order.get("fault") else None
    match order["verb"]:
        case "pretrain":
            stages.pretrain(recipe, root, told, **how)
        case "expert":
            stages.train_expert(recipe, root, order.get("experts", ["adds"]), told, **how)
        case "rounds":
            stages.train_expert(recipe, root, [], told, continuous=True, rounds=order["rounds"], **how)
        case "router":
            stages.train_router(recipe, root, told, **how)
        case "compose":
            stages.compose(recipe, root, told)
    return faults.armed.visits if faults.armed else 0


def attempt(order: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    try:
        return 0, {"visits": obey(order)}
    except (MoesaicError, Interrupted) as error:
        return error.exit_code, {"error": str(error)}
    except BaseException as error:
        return 98, {"error": repr(error)}


def forked(order: dict[str, Any]) -> dict[str, Any]:
    """How a child ended (negative: by a signal), what it said, how long it took; killed where that is ordered."""
    reading, writing = os.pipe()
    started = time.monotonic()
    if (pid := os.fork()) == 0:
        status, told = attempt(order)
        os.write(writing, json.dumps(told).encode())
        os._exit(status)
    os.close(writing)
    ended = 0
    for number, after in order.get("signals", {}).items():
        while not ended and time.monotonic() - started < after:
            ended, result = os.waitpid(pid, os.WNOHANG)
            time.sleep(0.0005)
        if not ended:
            os.kill(pid, int(number))
    if not ended:
        _, result = os.waitpid(pid, 0)
    with os.fdopen(reading, "rb") as pipe:
        told = json.loads(pipe.read() or "{}")
    return {"status": os.waitstatus_to_exitcode(result), "seconds": time.monotonic() - started, "error": "", **told}


if __name__ == "__main__":
    torch.set_num_threads(1)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for line in sys.stdin:
        print(json.dumps(forked(json.loads(line))), flush=True)
