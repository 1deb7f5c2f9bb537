"""Independent pieces of work side by side in processes; what they report arrives in the caller's thread.

Knows nothing about the work. Each process computes with one thread, so a result does not depend on how many run.
"""

import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.queues import Queue
from typing import Any

from moesaic.errors import MoesaicError
from moesaic.stages.progress import Progress

# A process of the pool knows its line to the parent by this; spawned processes share nothing else.
_line: "Queue[tuple[str, str, Any]] | None" = None


class Jobs:
    """A pool of processes, started at the first use and kept until the end of the `with` block."""

    def __init__(self, workers: int, progress: Progress):
        self.workers, self.progress = workers, progress
        self.pool: ProcessPoolExecutor | None = None
        self.others: set[int | None] = set()  # children of this process that are not ours
        self.done: set[str] = set()
        self.line: Queue[tuple[str, str, Any]] | None = None

    def __enter__(self) -> "Jobs":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if self.pool:
            if error:  # what still runs is of no use any more
                for process in multiprocessing.active_children():
                    if process.pid not in self.others:
                        process.terminate()
            self.pool.shutdown(cancel_futures=True)

    def run(self, work: Mapping[str, Callable[["Report"], Any]]) -> dict[str, Any]:
        """Do all the work, started in the order given, and return its results by name; the first error is raised."""
        if not self.pool:
            context = multiprocessing.get_context("spawn")
            self.line = context.Queue()
            self.others = {process.pid for process in multiprocessing.active_children()}
            self.pool = ProcessPoolExecutor(self.workers, context, _connect, (self.line,))
        with deaf_to_interrupts():
            futures = {name: self.pool.submit(_call, job, name) for name, job in work.items()}
        waiting = set(futures.values())
        while waiting:
            self.drain()
            waiting = {future for future in waiting if not future.done()}
            failed = next((f for f in futures.values() if f.done() and f.exception()), None)
            if failed:
                try:
                    failed.result()
                except BrokenProcessPool:
                    hint = (
                        "if memory ran out, use workers=1 and run again; a script must be a file and guard its __main__"
                    )
                    raise MoesaicError("a process of the pool was killed", got=", ".join(work), hint=hint) from None
        for _ in range(50):  # what a process said last may arrive after its result
            if self.done >= work.keys():
                break
            self.drain()
        self.done -= work.keys()
        return {name: future.result() for name, future in futures.items()}

    def drain(self, patience: float = 0.1) -> None:
        """Hand on what the processes say for a moment."""
        assert self.line is not None
        until = time.monotonic() + patience
        while (left := until - time.monotonic()) > 0:
            try:
                kind, name, what = self.line.get(timeout=left)
            except queue.Empty:
                return
            if kind == "done":
                self.done.add(name)
            else:
                getattr(self.progress, kind)(name, what)


class Report:
    """How a piece of work tells its steps, from whichever process it runs in."""

    def __init__(self, name: str, tell: Callable[[str, str, Any], None]):
        self.name, self.tell = name, tell

    def begin(self, steps: int) -> None:
        self.tell("begin", self.name, steps)

    def row(self, row: dict[str, Any]) -> None:
        self.tell("row", self.name, row)

    def end(self, text: str) -> None:
        self.tell("end", self.name, text)

    @staticmethod
    def here(name: str, progress: Progress) -> "Report":
        """A report of work in this process."""
        return Report(name, lambda kind, task, what: getattr(progress, kind)(task, what))


@contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """Processes started in here ignore Ctrl-C: it reaches the parent too, which then ends them.

    Python lets only the main thread decide this; runs in other threads get no Ctrl-C anyway.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _connect(line: "Queue[tuple[str, str, Any]]") -> None:
    import torch

    global _line
    _line = line
    torch.set_num_threads(1)
    threading.Thread(target=_outlive_nobody, daemon=True).start()


def _outlive_nobody() -> None:
    """Leave when the parent is gone, however it went."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _call(job: Callable[[Report], Any], name: str) -> Any:
    line = _line
    assert line is not None
    result = job(Report(name, lambda *message: line.put(message)))
    line.put(("done", name, None))
    return result
