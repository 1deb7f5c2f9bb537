"""A process that forks children which use moesaic.files and come to grief at an exact call: fault by fault.

Knows nothing about what should be left behind: the tests look at that. Speaks JSON, a line per order and answer.
"""

import errno
import functools
import json
import os
import signal
import sys
import time
from itertools import count
from pathlib import Path
from typing import Any

from moesaic.errors import MoesaicError
from moesaic.files import JsonlWriter, gather, lock, publish, write_json, write_manifest

CHANGING = ["mkdir", "write", "fsync", "replace", "rename", "link", "symlink", "chmod", "unlink", "rmdir", "truncate"]
NEVER = 100


def fill(text: str, old: Path):
    """Writes a version made of two files, one of them in a folder, what the old one has, and the manifest."""

    def write(folder: Path) -> None:
        (folder / "deep").mkdir()
        for path in folder / "weights.bin", folder / "deep" / "more.bin":
            fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
            os.write(fd, text.encode())
            os.close(fd)
        gather({"kept.bin": old / "weights.bin"}, folder)
        write_manifest(folder, {"kind": "lora", "text": text})

    return write


def break_at(number: int, fault: str) -> "count[int]":
    """Lets the call with this number, of all that change the disk, kill the process or fail; returns their counter."""
    calls = count(1)

    def breaking(real, *args: Any, **kwargs: Any) -> Any:
        if next(calls) != number:
            return real(*args, **kwargs)
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(getattr(errno, fault), os.strerror(getattr(errno, fault)))

    for name in CHANGING:
        setattr(os, name, functools.partial(breaking, getattr(os, name)))
    return calls


def obey(order: dict[str, Any]) -> int:
    """Does what the order says; returns 0, or NEVER where the call that was to break did not come."""
    root = Path(order["root"])
    if limit := order.get("limit"):
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    calls = break_at(order["call"], order["fault"]) if "call" in order else None
    match order["do"]:
        case "publish":
            publish(root / "best", fill(order["text"], root / "best"), keep=order.get("keep", 0))
        case "json":
            write_json(root / "value.json", {"text": order["text"]})
        case "log":
            with JsonlWriter(root / "log.jsonl") as log:
                for step in count():
                    log.append({"step": step, "text": "x" * (step % 50)})
        case "lock":
            with lock(root):
                (root / "held").touch()
                time.sleep(60)
    return NEVER if calls and next(calls) <= order["call"] else 0


if __name__ == "__main__":
    for line in sys.stdin:
        order = json.loads(line)
        if "kill" in order:
            os.kill(pid := order["kill"], signal.SIGKILL)
        elif (pid := os.fork()) == 0:
            try:
                status = obey(order)
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
                status = error.exit_code if isinstance(error, MoesaicError) else 99
            os._exit(status)
        answer = pid if order.get("leave") else os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(json.dumps(None if answer == NEVER else answer), flush=True)
