"""Work on strangers' files in a separate process with bounded time and memory.

Knows nothing about the work. A crash of the process, and its output, do not reach the caller.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from signal import Signals

_CHILD = "from moesaic.tokenizer.guard import _serve; _serve()"
_PATIENCE = 60  # wall-clock seconds for one of CPU: the machine may be busy


@dataclass(frozen=True)
class Limits:
    """Limits of the work: seconds of CPU, and MiB of memory beyond those that Python takes itself.

    Memory is bounded on Linux only; Windows bounds only the wall-clock time.
    """

    seconds: int
    megabytes: int


def guarded(work: Callable[[bytes], bytes], given: bytes, limits: Limits) -> bytes:
    """Call `work(given)`, a function of a module; ValueError with the reason where it fails or takes too much."""
    path = os.pathsep.join(filter(None, sys.path))
    environment = {**os.environ, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-c", _CHILD, work.__module__, work.__name__]
    command += [str(limits.seconds), str(limits.megabytes)]
    timeout = limits.seconds * _PATIENCE
    try:
        done = subprocess.run(
            command, input=given, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"it takes more than {limits.seconds} s") from None
    if done.returncode == 0:
        return done.stdout
    if done.returncode == 1:
        raise ValueError(done.stdout.decode(errors="replace") or "its reader could not be started")
    name = Signals(-done.returncode).name if done.returncode < 0 else str(done.returncode)
    if name in ("SIGXCPU", "SIGKILL"):
        raise ValueError(f"it takes more than {limits.seconds} s")
    raise ValueError(f"its reader crashed ({name}): it is damaged, or takes more than {limits.megabytes} MiB")


def _serve() -> None:
    module, name, seconds, megabytes = sys.argv[1:]
    work, given = getattr(import_module(module), name), sys.stdin.buffer.read()
    _limit(int(seconds), int(megabytes))
    try:
        answer, status = work(given), 0
    except MemoryError:
        answer, status = f"it takes more than {megabytes} MiB".encode(), 1
    except BaseException as error:  # a panic of Rust is no Exception
        answer, status = (str(error) or type(error).__name__)[:500].encode(errors="replace"), 1
    sys.stdout.buffer.write(answer)
    sys.stdout.buffer.flush()
    os._exit(status)


def _limit(seconds: int, megabytes: int) -> None:
    if sys.platform == "win32":
        return
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    if sys.platform == "linux":  # other systems report sizes differently, or do not enforce this limit
        with open("/proc/self/statm", "rb") as file:
            taken = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        size = taken + (megabytes << 20)
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
