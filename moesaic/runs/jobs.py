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
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from typing import Any, TypeVar

from moesaic.errors import MoesaicError
from moesaic.runs.progress import Progress
from moesaic.runs.signals import SIGNALS, heed, mood, obey, stopping

T = TypeVar("T")


class Kept:
    """The last result of each of some functions: one piece of work leaves to the next what both would compute."""

    def __init__(self) -> None:
        self.results: dict[Callable[..., Any], tuple[tuple[Any, ...], Any]] = {}

    def __call__(self, function: Callable[..., T], *arguments: Any) -> T:
        """`function(*arguments)`, computed anew only where the arguments differ from the last time's."""
        if function not in self.results or self.results[function][0] != arguments:
            self.results.pop(function, None)  # never both in memory
            self.results[function] = arguments, function(*arguments)
        return self.results[function][1]


# A process of the pool knows its line to the parent by this; spawned processes share nothing else.
_line: "Queue[tuple[str, str, Any]] | None" = None
_kept = Kept()


class Jobs:
    """A pool of processes, started at the first use and kept until the end of the `with` block.

    One worker does the work in the caller's own process: it is the same, and a process takes seconds to start.
    """

    def __init__(self, workers: int, progress: Progress):
        self.workers, self.progress = workers, progress
        self.pool: ProcessPoolExecutor | None = None
        self.others: set[int | None] = set()  # children of this process that are not ours
        self.done: set[str] = set()
        self.kept = Kept()
        self.line: Queue[tuple[str, str, Any]] | None = None

    def __enter__(self) -> "Jobs":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if self.pool:
            if error:  # what still runs is of no use any more, and what it was writing is published whole or not at all
                for process in self.children():
                    process.kill()
            self.pool.shutdown(cancel_futures=True)

    def run(self, work: Mapping[str, Callable[["Report"], Any]]) -> dict[str, Any]:
        """Do all the work, started in the order given, and return its results by name; the first error is raised."""
        if self.workers == 1:
            with threads(1):
                return {name: job(self.report(name)) for name, job in work.items()}
        if not work:
            return {}
        if not self.pool:
            context = multiprocessing.get_context("spawn")
            self.line = context.Queue()
            self.others = {process.pid for process in multiprocessing.active_children()}
            self.pool = ProcessPoolExecutor(self.workers, context, _connect, (self.line,))
        with undisturbed():
            futures = {name: self.pool.submit(_call, job, name) for name, job in work.items()}
        with mood("patient"):
            self.wait(futures)
        heed()
        for _ in range(50):  # what a process said last may arrive after its result
            if self.done >= work.keys():
                break
            self.drain()
        self.done -= work.keys()
        return {name: future.result() for name, future in futures.items()}

    def report(self, name: str) -> "Report":
        """The report of work in this process."""

        def tell(kind: str, task: str, what: Any) -> None:
            self.progress.warn(f"{task}: {what}") if kind == "warn" else getattr(self.progress, kind)(task, what)

        return Report(name, tell, self.kept)

    def wait(self, futures: Mapping[str, "Future[Any]"]) -> None:
        """Until all is done, or the first error; where somebody asks to stop, until every process has come to that."""
        waiting, told = set(futures.values()), False
        while waiting:
            self.drain()
            if stopping() and not told:
                told = True
                for future in waiting:
                    future.cancel()
                for process in self.children():
                    process.terminate()
            waiting = {future for future in waiting if not future.done()}
            failed = next((f for f in futures.values() if f.done() and not f.cancelled() and f.exception()), None)
            if failed and not told:
                try:
                    failed.result()
                except BrokenProcessPool:
                    hint = (
                        "if memory ran out, use workers=1 and run again; a script must be a file and guard its __main__"
                    )
                    raise MoesaicError("a process of the pool was killed", got=", ".join(futures), hint=hint) from None

    def children(self) -> list[BaseProcess]:
        """The processes of the pool."""
        return [process for process in multiprocessing.active_children() if process.pid not in self.others]

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
            elif kind == "warn":
                self.progress.warn(f"{name}: {what}")
            else:
                getattr(self.progress, kind)(name, what)


class Report:
    """How a piece of work tells its steps, from whichever process it runs in; `kept`: results of earlier work there."""

    def __init__(self, name: str, tell: Callable[[str, str, Any], None], kept: Kept):
        self.name, self.tell, self.kept = name, tell, kept

    def begin(self, steps: int) -> None:
        self.tell("begin", self.name, steps)

    def row(self, row: dict[str, Any]) -> None:
        self.tell("row", self.name, row)

    def end(self, text: str) -> None:
        self.tell("end", self.name, text)

    def warn(self, text: str) -> None:
        self.tell("warn", self.name, text)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Tensors are computed with so many in here; with another number, sums are added up in another order."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait in here, and in processes that are started in here until those can hear them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _connect(line: "Queue[tuple[str, str, Any]]") -> None:
    import torch

    global _line
    _line = line
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches the parent too, which then tells us
    signal.signal(signal.SIGTERM, obey)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
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
    with mood("hasty"):
        heed()
        result = job(Report(name, lambda *message: line.put(message), _kept))
    line.put(("done", name, None))
    return result
