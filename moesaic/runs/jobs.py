"""Independent pieces of work side by side in processes; their reports arrive in the caller's thread.

Knows nothing about the work. Each process computes with one thread, so a result does not depend on their number.
"""

import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from multiprocessing.sharedctypes import Synchronized
from typing import Any, ClassVar, TypeVar

from moesaic.errors import MoesaicError
from moesaic.hardware import LOCAL_RANK
from moesaic.runs.progress import Progress, watched
from moesaic.runs.signals import HANGUP, SIGNALS, heed, mood, obey, stopping

T = TypeVar("T")


Message = tuple[str, str, Any]
"""A method of Progress (or `done`), the name of a piece of work, and a step, a number or a text."""


GRACE = 20.0
"""Seconds that processes have, after an error of one of them, to end what they do or save their training."""


class Cache:
    """The last result of each of some functions: a piece of work leaves it to the next one in the same process."""

    def __init__(self) -> None:
        self.results: dict[Callable[..., Any], tuple[tuple[Any, ...], Any]] = {}

    def __call__(self, function: Callable[..., T], *arguments: Any) -> T:
        """`function(*arguments)`, computed anew only where the arguments differ from the last call's."""
        if function not in self.results or self.results[function][0] != arguments:
            self.results.pop(function, None)  # never both in memory
            self.results[function] = arguments, function(*arguments)
        return self.results[function][1]


class Jobs:
    """A pool of processes, started at the first use and stopped at the end of the `with` block.

    One worker does the work in the caller's own process, with the same results and without the start of a process.
    """

    def __init__(self, workers: int, progress: Progress):
        self.workers, self.progress = workers, progress
        self.pool: ProcessPoolExecutor | None = None
        self.others: set[int | None] = set()  # children of this process that are not ours
        self.done: set[str] = set()
        self.cache = Cache()
        self.line: Queue[Message] | None = None

    def __enter__(self) -> "Jobs":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if not self.pool:
            return
        processes = self.children() if error else []
        # Killed in the middle of a result, a process leaves a part of it, and the pool waits for the rest for ever.
        for process in processes:
            process.terminate()
        late = threading.Timer(GRACE, kill_all, [processes])
        late.daemon = True
        late.start()
        self.pool.shutdown(cancel_futures=True)
        late.cancel()

    def run(self, work: Mapping[str, Callable[["Report"], Any]], task: str | None = None) -> dict[str, Any]:
        """Do all the work, in the order given, and return its results by name; the first error is raised.

        `task`: the task under which the progress counts the pieces that are done; None counts none.
        """
        if task is None or not work:
            return self._run(work, lambda done: None)
        self.progress.begin(task, len(work))
        found = self._run(work, lambda done: self.progress.row(task, {"step": done}))
        self.progress.end(task, f"{len(work)} done")
        return found

    def _run(self, work: Mapping[str, Callable[["Report"], Any]], count: Callable[[int], None]) -> dict[str, Any]:
        if self.workers == 1:
            found = dict[str, Any]()
            with threads(1):
                for done, (name, job) in enumerate(work.items(), 1):
                    found[name] = job(self.report(name))
                    count(done)
            return found
        if not work:
            return {}
        if not self.pool:
            context = multiprocessing.get_context("spawn")
            self.line = context.Queue()
            self.others = {process.pid for process in multiprocessing.active_children()}
            started = context.Value("i", 0)
            self.pool = ProcessPoolExecutor(self.workers, context, Worker.start, (self.line, started))
        with undisturbed():
            futures = {name: self.pool.submit(Worker.call, job, name) for name, job in work.items()}
        with mood("patient"):
            self.wait(futures, count)
        heed()
        for _ in range(50):  # the last report of a process may arrive after its result
            if self.done >= work.keys():
                break
            self.drain()
        self.done -= work.keys()
        return {name: future.result() for name, future in futures.items()}

    def report(self, name: str) -> "Report":
        """The report of work in this process."""
        return Report(name, self.pass_on, self.cache)

    def pass_on(self, kind: str, name: str, what: Any) -> None:
        """Call the progress; its warnings and notes are texts that begin with the name of the work."""
        call = getattr(self.progress, kind)
        call(f"{name}: {what}") if kind in ("warn", "note") else call(name, what)

    def wait(self, futures: Mapping[str, "Future[Any]"], count: Callable[[int], None]) -> None:
        """Wait until all work is done, or the first error; after a signal, until every process has stopped."""
        waiting, stopped = set(futures.values()), False
        while waiting:
            self.drain()
            if stopping() and not stopped:
                stopped = True
                for future in waiting:
                    future.cancel()
                for process in self.children():
                    process.terminate()
            left = {future for future in waiting if not future.done()}
            if len(left) < len(waiting):
                count(len(futures) - len(left))
            waiting = left
            failed = next((f for f in futures.values() if f.done() and not f.cancelled() and f.exception()), None)
            if failed and not stopped:
                try:
                    failed.result()
                except BrokenProcessPool:
                    hint = "if memory ran out, run again with workers=1; a script must be a file and guard its __main__"
                    raise MoesaicError("a process of the pool was killed", got=", ".join(futures), hint=hint) from None

    def children(self) -> list[BaseProcess]:
        return [process for process in multiprocessing.active_children() if process.pid not in self.others]

    def drain(self, patience: float = 0.1) -> None:
        """Pass on the reports of the processes for a moment."""
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
                self.pass_on(kind, name, what)


def kill_all(processes: Collection[BaseProcess]) -> None:
    for process in processes:
        process.kill()


class Report:
    """Reports the steps of a piece of work from any process. `cached`: calls a function, or takes its last result."""

    def __init__(self, name: str, send: Callable[[str, str, Any], None], cached: Cache):
        self.name, self.send, self.cached, self.begun = name, send, cached, False

    def begin(self, steps: int) -> None:
        self.begun = True
        self.send("begin", self.name, steps)

    def row(self, row: dict[str, Any]) -> None:
        self.send("row", self.name, row)

    def end(self, text: str) -> None:
        if not self.begun:
            raise RuntimeError(f"{self.name}: the end of what has not begun")
        self.begun = False
        self.send("end", self.name, text)

    def watched(self, items: Collection[T]) -> Iterator[T]:
        """The same items, whose iteration is reported in place of steps where it takes its time."""
        return watched(items, len(items), self.name, self.send)

    def warn(self, text: str) -> None:
        self.send("warn", self.name, text)

    def note(self, text: str) -> None:
        self.send("note", self.name, text)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute tensors with this many threads; with another number, sums are added up in another order."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Block the signals that end a run, and in processes that are started meanwhile until these have their handlers."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


class Worker:
    """A process of the pool: its queue to the parent and its cache. Spawned processes share nothing else."""

    current: "ClassVar[Worker]"

    def __init__(self, line: "Queue[Message]"):
        self.line, self.cache = line, Cache()

    @classmethod
    def start(cls, line: "Queue[Message]", started: "Synchronized[int]") -> None:
        """Prepare a new process: one thread, a device, its signals, and its end with the parent.

        `started`: the number of processes before it.
        """
        import torch

        cls.current = cls(line)
        with started.get_lock():
            os.environ[LOCAL_RANK] = str(started.value)
            started.value += 1
        torch.set_num_threads(1)
        for number in (signal.SIGINT, *HANGUP):  # those of a terminal reach the parent too, which ends the pool
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, obey)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        threading.Thread(target=_end_with_parent, daemon=True).start()

    @classmethod
    def call(cls, job: Callable[[Report], Any], name: str) -> Any:
        """Do a piece of work in this process."""
        line = cls.current.line
        with mood("hasty"):
            heed()
            result = job(Report(name, lambda *message: line.put(message), cls.current.cache))
        line.put(("done", name, None))
        return result


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
