"""What a request must pass before any route: its Host, Origin and key, and the limits of its body.

An ASGI application around another. Knows nothing about models.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from moesaic.serve.metrics import Metrics
from moesaic.serve.problems import Problem

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = "/health"
EXPOSED = "x-moesaic-decision, x-moesaic-expert, x-moesaic-confidence, x-moesaic-reason, x-request-id, retry-after"


@dataclass(frozen=True)
class Entry:
    """Who may come in.

    `key`: the API key, None where everybody of this machine may ask. `hosts`: names beside IP addresses and localhost.
    `origins`: web pages of other addresses that may ask. `body`: most bytes of a body. `body_seconds`: the time in
    which a body must arrive.
    """

    key: str | None = field(default=None, repr=False)
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    body: int = 1 << 20
    body_seconds: float = 30.0


class Gate:
    """Refuses what `entry` does not let in, in the shape of all errors; gives each response an id, and counts it."""

    def __init__(self, app: App, entry: Entry, metrics: Metrics):
        self.app, self.entry, self.metrics = app, entry, metrics
        self._key = None if entry.key is None else hashlib.sha256(entry.key.encode()).digest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = named(scope["headers"])
        origin = headers.get("origin")
        extra = {"x-request-id": f"req_{secrets.token_hex(12)}"}
        if origin in self.entry.origins:
            extra |= {"access-control-allow-origin": origin or "", "vary": "Origin"}
            extra |= {"access-control-expose-headers": EXPOSED}
        body = Incoming(self.entry, headers, receive)

        async def sending(message: Message) -> None:
            if body.problem is not None:
                return
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "other")
                self.metrics.requests.labels(route, str(message["status"])).inc()
                more = [(name.encode(), value.encode("latin-1")) for name, value in extra.items()]
                message = {**message, "headers": [*message.get("headers", []), *more]}
            await send(message)

        try:
            self.require(headers)
            if scope["method"] == "OPTIONS" and "access-control-request-method" in headers and origin is not None:
                await answer(204, b"", preflight(), sending)
                return
            self.require_key(headers, scope["path"])
            body.require_size()
        except Problem as problem:
            await answer(problem.status, json.dumps(problem.body).encode(), problem.headers, sending)
            return
        await self.app(scope, body, sending)
        if (refused := body.problem) is not None:
            body.problem = None
            await answer(refused.status, json.dumps(refused.body).encode(), refused.headers, sending)

    def require(self, headers: dict[str, str]) -> None:
        """Refuse a Host that is a stranger's name for this machine, and pages of other addresses."""
        host = headers.get("host", "")
        if not self.knows(host):
            message = f"Host: {host[:100]!r} is no address of this server; name it with --allow-host"
            raise Problem(403, message, code="host_not_allowed")
        origin = headers.get("origin")
        same = origin is not None and origin.rpartition("://")[2] == host
        if origin is not None and not same and origin not in self.entry.origins:
            message = f"Origin: pages of {origin[:100]!r} may not ask this server; name them with --allow-origin"
            raise Problem(403, message, code="origin_not_allowed")

    def knows(self, host: str) -> bool:
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() and not host.endswith("]") else host
        if name.lower() == "localhost" or name.lower() in self.entry.hosts:
            return True
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return True

    def require_key(self, headers: dict[str, str], path: str) -> None:
        """Refuse a request without the key, in a time that does not depend on what was sent."""
        if self._key is None or path == OPEN:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(hashlib.sha256(given.strip().encode("latin-1", "replace")).digest(), self._key)
        if scheme.lower() != "bearer" or not same:
            raise Problem(
                401,
                "Authorization: no valid API key; send 'Authorization: Bearer KEY'",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )


class Incoming:
    """The body of a request as it comes in. `problem`: why it was not read to its end."""

    def __init__(self, entry: Entry, headers: dict[str, str], receive: Receive):
        self.entry, self.receive = entry, receive
        self.problem: Problem | None = None
        self.declared = headers.get("content-length", "0")
        self.size, self.whole, self.deadline = 0, False, time.monotonic() + entry.body_seconds

    def require_size(self) -> None:
        if self.declared.isdigit() and int(self.declared) > self.entry.body:
            raise too_large(self.entry.body)

    async def __call__(self) -> Message:
        if self.whole:
            return await self.receive()
        try:
            message = await asyncio.wait_for(self.receive(), max(0.0, self.deadline - time.monotonic()))
        except TimeoutError:
            self.problem = Problem(408, "the body did not arrive in time", code="body_timeout")
            return {"type": "http.disconnect"}
        self.size += len(message.get("body", b""))
        if self.size > self.entry.body:
            self.problem = too_large(self.entry.body)
            return {"type": "http.disconnect"}
        self.whole = not message.get("more_body", False)
        return message


def too_large(most: int) -> Problem:
    message = f"the body is too large; expected at most {most:,} bytes"
    return Problem(413, message, code="body_too_large", headers={"connection": "close"})


def named(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in headers}


def preflight() -> dict[str, str]:
    allowed = {"access-control-allow-methods": "GET, POST", "access-control-max-age": "600"}
    return {**allowed, "access-control-allow-headers": "authorization, content-type, x-session-id"}


async def answer(status: int, body: bytes, headers: dict[str, str], send: Send) -> None:
    """Send a whole response."""
    more = {"content-type": "application/json", "content-length": str(len(body))} if body else {}
    every = [(name.encode(), value.encode("latin-1")) for name, value in {**more, **headers}.items()]
    await send({"type": "http.response.start", "status": status, "headers": every})
    await send({"type": "http.response.body", "body": body})
