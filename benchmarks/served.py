"""A server as a process of its own, with a key, and clients of it, each with a connection of its own.

Knows nothing about what is asked. Memory is read from /proc, so that the process must run on Linux.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import moesaic
from moesaic.generate.trace import Decision, read_trace

T = TypeVar("T")
KEY = "the-key-of-a-benchmark"
HEADERS = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
NAME = "mixture"
PATIENCE = 120.0
"""Seconds that a server may take to start, or to end what was asked."""


@dataclass(frozen=True)
class Reply:
    """A whole response. `seconds`: from before the request until its last byte."""

    status: int
    headers: dict[str, str]
    data: bytes
    seconds: float

    @property
    def body(self) -> Any:
        return json.loads(self.data)

    @property
    def events(self) -> list[Any]:
        """The events of a stream, without the closing [DONE]."""
        lines = [line.removeprefix("data: ") for line in self.data.decode().split("\n\n") if line]
        if lines[-1] != "[DONE]" or lines.count("[DONE]") != 1:
            raise ValueError(f"a stream without its end: {lines[-1][:200]}")
        return [json.loads(line) for line in lines[:-1]]

    @property
    def streamed(self) -> bool:
        return self.headers["content-type"].startswith("text/event-stream")

    @property
    def routing(self) -> dict[str, Any]:
        """The `routing` object of an answer."""
        return (self.events[0] if self.streamed else self.body)["routing"]

    @property
    def text(self) -> str:
        """The text of the only choice of a chat."""
        if self.streamed:
            choices = [choice for one in self.events for choice in one["choices"]]
            return "".join(choice["delta"].get("content") or "" for choice in choices)
        return self.body["choices"][0]["message"]["content"]


class Client:
    """One connection, which is opened with the first request and kept for the next."""

    def __init__(self, host: str, port: int):
        self.connection = HTTPConnection(host, port, timeout=PATIENCE)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def get(self, path: str) -> Reply:
        return self.send("GET", path, None)

    def post(self, path: str, body: dict[str, Any]) -> Reply:
        return self.send("POST", path, json.dumps(body).encode())

    def chat(self, messages: list[dict[str, str]], **fields: Any) -> Reply:
        """Ask for a greedy answer of a few tokens, unless `fields` say otherwise."""
        usual = {"model": NAME, "messages": messages, "max_tokens": 4, "temperature": 0}
        return self.post("/v1/chat/completions", usual | fields)

    def send(self, method: str, path: str, data: bytes | None) -> Reply:
        started = time.perf_counter()
        self.connection.request(method, path, data, HEADERS)
        response = self.connection.getresponse()
        read = response.read()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Reply(response.status, headers, read, time.perf_counter() - started)


@dataclass(frozen=True)
class Served:
    """A server that runs. `trace`: the file of its decisions, with texts."""

    process: subprocess.Popen[str]
    address: tuple[str, int]
    trace: Path

    def client(self) -> Client:
        return Client(*self.address)

    def spread(self, calls: int, workers: int, ask: Callable[[Client, int], T]) -> list[T]:
        """Call `ask` with each number below `calls`; several workers, each with one connection, share the calls."""

        def work(first: int) -> list[T]:
            with self.client() as client:
                return [ask(client, number) for number in range(first, calls, workers)]

        with ThreadPoolExecutor(workers) as pool:
            return [one for part in pool.map(work, range(workers)) for one in part]

    def figures(self, name: str) -> dict[str, float]:
        """The samples of a metric by their labels."""
        with self.client() as client:
            lines = client.get("/metrics").data.decode().splitlines()
        samples = [
            line.removeprefix(name).rpartition(" ") for line in lines if line.startswith((f"{name} ", f"{name}{{"))
        ]
        return {labels: float(value) for labels, _, value in samples}

    def total(self, name: str) -> float:
        """The sum of a metric over all labels."""
        return sum(self.figures(name).values())

    @property
    def busy(self) -> dict[str, float]:
        """What is under way, and the bytes of the cache that it holds; all 0 when the server is idle."""
        return {name: self.total(f"moesaic_{name}") for name in ("running", "waiting", "cache_bytes")}

    def wait(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds."""
        latest = time.monotonic() + PATIENCE
        while not holds():
            if time.monotonic() > latest:
                raise TimeoutError(f"waited in vain; under way: {self.busy}")
            time.sleep(0.05)

    def rest(self) -> None:
        """Wait until nothing is under way."""
        self.wait(lambda: not any(self.busy.values()))

    @property
    def resident(self) -> int:
        """Bytes of the process that are in memory."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS:"))

    def decisions(self) -> dict[str, Decision]:
        """The rows of the trace by their ids."""
        return {one.id: one for one in read_trace(self.trace) if one.id is not None}


@contextmanager
def served(place: Path, folder: Path, *options: str) -> Iterator[Served]:
    """`moesaic serve` over a model, until the end of the block; its trace and its log lie in `folder`."""
    folder.mkdir(parents=True)
    trace = folder / "trace.jsonl"
    command = [sys.executable, "-m", "moesaic", "serve", str(place), "--port", "0", "--name", NAME, *options]
    command += ["--trace", str(trace), "--trace-texts"]
    environment = {**os.environ, "PYTHONPATH": str(Path(moesaic.__file__).parents[1]), "MOESAIC_API_KEY": KEY}
    with (folder / "log").open("w+", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
        with process:
            assert process.stdout is not None
            try:
                line = process.stdout.readline()
                if " at http://" not in line:
                    raise RuntimeError(f"the server does not start: {line}{(folder / 'log').read_text()}")
                found = urlsplit(line.split(" at ")[1].strip())
                yield Served(process, (found.hostname or "", found.port or 0), trace)
            finally:
                process.terminate()
        if process.returncode != 0 or "Traceback" in (folder / "log").read_text(encoding="utf-8"):
            raise RuntimeError(f"the server ended with {process.returncode}: {(folder / 'log').read_text()}")
