"""`moesaic serve` as a process: a socket, signals, and new versions of the model that appear in its folder.

Knows nothing about routes.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from moesaic.errors import MoesaicError, RecipeError
from moesaic.files import MANIFEST
from moesaic.generate.loaded import WritingModel, load
from moesaic.sections.names import validate_name
from moesaic.sections.places import SHIPPED, name_at
from moesaic.serve.app import Serving, create_app
from moesaic.serve.gate import Entry, Gate
from moesaic.serve.metrics import Metrics
from moesaic.serve.version import Limits, Version
from moesaic.serve.worker import Worker

__all__ = ["Entry", "Limits", "Listening", "Place", "Server"]

LOOPBACK = ("127.0.0.1", "::1", "localhost")
POLL_SECONDS = 1.0
HEADER_BYTES, HEADER_SECONDS = 32 << 10, 30
"""Limits of the head of a request."""


@dataclass(frozen=True)
class Place:
    """The model to serve, as `moesaic.load` finds it, with its limits of memory. `name`: what requests call it, by
    default the place's name."""

    at: str
    base: str | None = None
    trace: Path | None = None
    trace_texts: bool = False
    name: str | None = None
    ram: str | None = None
    vram: str | None = None

    def load(self) -> WritingModel:
        """Load the model. Raises CompatibilityError for one that writes no text."""
        memory: dict[str, Any] = {"ram": self.ram, "vram": self.vram}
        return load(self.at, base=self.base, trace=self.trace, trace_texts=self.trace_texts, **memory).writer

    @property
    def called(self) -> str:
        usual = self.at.removeprefix(SHIPPED) if self.at.startswith(SHIPPED) else name_at(self.at)
        return validate_name(usual if self.name is None else self.name, "a model")

    @property
    def mark(self) -> tuple[int, ...]:
        """A mark of the manifest in the model's folder that differs once the folder is changed or replaced."""
        folder = Path(os.path.expanduser(self.at))
        for path in (folder / "mixture" / MANIFEST, folder / MANIFEST):
            with contextlib.suppress(OSError):
                found = path.stat()
                return found.st_ino, found.st_mtime_ns, found.st_size
        return ()


@dataclass(frozen=True)
class Listening:
    """Where and for how long to listen. `seconds`: of an answer; `drain`: of the answers after a signal to end."""

    host: str = "127.0.0.1"
    port: int = 8000
    seconds: float = 600.0
    drain: float = 30.0
    entry: Entry = field(default_factory=Entry)

    def __post_init__(self) -> None:
        if self.entry.key is None and self.host not in LOOPBACK:
            what, hint = "only this machine may ask a server without a key", "set --api-key-file or MOESAIC_API_KEY"
            raise RecipeError(what, field="host", expected=" or ".join(LOOPBACK), got=self.host, hint=hint)


class Server:
    """A loaded model behind a socket; `run` answers until a signal or `stop`."""

    def __init__(self, place: Place, limits: Limits, listening: Listening):
        self.place, self.limits, self.listening = place, limits, listening
        self.metrics, self.mark = Metrics(), place.mark
        self.worker = Worker(Version(place.called, place.load(), limits), self.metrics)
        serving = Serving(self.worker, self.metrics, listening.seconds, int(time.time()))
        app = Gate(create_app(serving), listening.entry, self.metrics)
        self.uvicorn = Signalled(
            uvicorn.Config(
                app,
                http=Connection,
                ws="none",
                lifespan="off",
                log_level="warning",
                access_log=False,
                server_header=False,
                date_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=int(listening.drain),
                timeout_keep_alive=HEADER_SECONDS,
                h11_max_incomplete_event_size=HEADER_BYTES,
            )
        )
        self.socket = bound(listening.host, listening.port)
        self._again = False

    @property
    def address(self) -> str:
        host, port = self.socket.getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def run(self) -> None:
        """Answer requests until SIGTERM, SIGINT or `stop`; SIGHUP loads the model again."""
        asyncio.run(self._serve())

    def stop(self) -> None:
        self.uvicorn.should_exit = True

    def reload(self) -> None:
        """Load the model again, and answer new requests with what was loaded."""
        self._again = True

    async def _serve(self) -> None:
        self.uvicorn.on_hangup = self.reload
        self.worker.open()
        watching = asyncio.create_task(self._watch())
        try:
            await self.uvicorn.serve(sockets=[self.socket])
        finally:
            watching.cancel()
            await self.worker.close()

    async def _watch(self) -> None:
        """Swap the model whenever its manifest changes, or a signal asks for it."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            found = self.place.mark
            if self._again or (found and found != self.mark):
                self._again, self.mark = False, found
                await self._swap()

    async def _swap(self) -> None:
        """Load the model beside the one that answers; a model that cannot be loaded changes nothing."""
        try:
            model = await asyncio.to_thread(self.place.load)
            await self.worker.swap(Version(self.place.called, model, self.limits))
        except MoesaicError as error:
            self.metrics.swaps.labels("failed").inc()
            print(f"warning: the new version is not served: {error}", file=sys.stderr, flush=True)
        else:
            self.metrics.swaps.labels("done").inc()
            print(f"swapped to {model.identity}", file=sys.stderr, flush=True)


class Connection(H11Protocol):
    """A connection that is closed unless the whole head of its next request arrives in time."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._late is not None:
            self._late.cancel()
        super().connection_lost(exc)

    def _expect(self) -> None:
        """Close the connection unless another request begins in time."""
        latest = self.cycle

        def close() -> None:
            if self.cycle is latest:
                self.transport.close()

        if self._late is not None:
            self._late.cancel()
        self._late = self.loop.call_later(HEADER_SECONDS, close)


class Signalled(uvicorn.Server):
    """A server that ends on SIGTERM and SIGINT with status 0, at once on a second one, and passes SIGHUP on."""

    on_hangup: Callable[[], None]

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals while the server runs; in a thread that receives none, nothing changes."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.hear) for number in (signal.SIGINT, signal.SIGTERM)}
        if hasattr(signal, "SIGHUP"):
            before[signal.SIGHUP] = signal.signal(signal.SIGHUP, lambda *_: self.on_hangup())
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def hear(self, number: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True


def bound(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any free one. Connections wait in it until the server runs."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
        made.listen()
    except OSError as error:
        made.close()
        hint = "stop the server that listens there, or give another --port"
        raise RecipeError("cannot listen", field="port", got=f"{host}:{port}: {error.strerror}", hint=hint) from error
    return made
