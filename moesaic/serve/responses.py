"""Responses that follow an order while it is answered: whole, or as server-sent events; a client that leaves cancels.

Knows nothing about routes or models.
"""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from moesaic.serve.answers import DONE, Writer, compact, event, headers_of
from moesaic.serve.choosing import Decision
from moesaic.serve.problems import Problem
from moesaic.serve.version import Order
from moesaic.serve.worker import Answer, Piece, Worker

CLOSED = 499
"""The status of a request whose client has left, as proxies count it."""


class Left(Exception):
    """The client has closed the connection."""


class Following:
    """One order and what becomes of it; `stop` cancels an order that has not ended.

    `decision`, `begun` (with the first token) and `answer` raise a Problem where the order fails, and Left where the
    client has left. None ends `pieces`.
    """

    def __init__(self, worker: Worker, order: Order, receive: Receive):
        loop = asyncio.get_running_loop()
        self.worker, self.receive = worker, receive
        self.decision: asyncio.Future[Decision] = loop.create_future()
        self.begun: asyncio.Future[None] = loop.create_future()
        self.answer: asyncio.Future[Answer] = loop.create_future()
        self.pieces: asyncio.Queue[Piece | None] = asyncio.Queue()
        self.job = worker.start(order, self)
        self._watching = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass
        self._end(Left())

    def decided(self, decision: Decision) -> None:
        if not self.decision.done():
            self.decision.set_result(decision)

    def began(self) -> None:
        if not self.begun.done():
            self.begun.set_result(None)

    def add(self, piece: Piece) -> None:
        self.pieces.put_nowait(piece)

    def done(self, answer: Answer) -> None:
        if not self.answer.done():
            self.answer.set_result(answer)
        self.pieces.put_nowait(None)

    def failed(self, problem: Problem) -> None:
        self._end(problem)

    def _end(self, error: Exception) -> None:
        for future in (self.decision, self.begun, self.answer):
            if not future.done():
                future.set_exception(error)
                future.exception()  # nobody may wait for it any more, which is no fault
        self.pieces.put_nowait(None)

    def stop(self, finish: str = "aborted") -> None:
        """End the order, unless it has ended."""
        self._watching.cancel()
        self.worker.cancel(self.job, finish)


async def whole(following: Following, seconds: float, writing: Callable[[Decision], Writer]) -> Response:
    """The response with a whole answer."""
    finish = "aborted"
    try:
        async with asyncio.timeout(seconds):
            decision = await following.decision
            body = writing(decision).body(await following.answer)
        return Response(compact(body), media_type="application/json", headers=headers_of(decision))
    except TimeoutError:
        finish = "timeout"
        raise with_decision(late(seconds), following) from None
    except Problem as problem:
        raise with_decision(problem, following) from None
    except Left:
        return Response(status_code=CLOSED)
    finally:
        following.stop(finish)


async def streamed(following: Following, seconds: float, writing: Callable[[Decision], Writer]) -> Response:
    """The response with the pieces of an answer; an order that fails before its first token has a status."""
    deadline = asyncio.get_running_loop().time() + seconds
    try:
        async with asyncio.timeout_at(deadline):
            decision = await following.decision
            await following.begun
        return EventStream(following, deadline, seconds, writing(decision))
    except TimeoutError:
        following.stop("timeout")
        raise with_decision(late(seconds), following) from None
    except Problem as problem:
        following.stop()
        raise with_decision(problem, following) from None
    except Left:
        following.stop()
        return Response(status_code=CLOSED)
    except asyncio.CancelledError:
        following.stop()
        raise


class EventStream(Response):
    """Server-sent events: the opening, a chunk for each piece, the endings, and [DONE]; an error instead of endings."""

    media_type = "text/event-stream"

    def __init__(self, following: Following, deadline: float, seconds: float, writer: Writer) -> None:
        super().__init__(headers={**headers_of(writer.decision), "cache-control": "no-store"})
        del self.headers["content-length"]
        self.following, self.deadline, self.seconds, self.writer = following, deadline, seconds, writer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        finish = "aborted"

        async def write(events: Iterable[str], more: bool = True) -> None:
            await send({"type": "http.response.body", "body": "".join(events).encode(), "more_body": more})

        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            with suppress(Left):
                try:
                    async with asyncio.timeout_at(self.deadline):
                        await write(map(event, self.writer.begin()))
                        while (piece := await self.following.pieces.get()) is not None:
                            await write([event(self.writer.piece(piece))])
                        endings = [*map(event, self.writer.end(await self.following.answer))]
                except TimeoutError:
                    finish, endings = "timeout", [event(late(self.seconds).body)]
                except Problem as problem:
                    endings = [event(problem.body)]
                await write([*endings, DONE], more=False)
        finally:
            self.following.stop(finish)


def late(seconds: float) -> Problem:
    return Problem(504, f"the answer took longer than {seconds:g} seconds", code="timeout")


def with_decision(problem: Problem, following: Following) -> Problem:
    """The problem, with the headers of the decision if there was one."""
    decision = following.decision
    if decision.done() and not decision.cancelled() and decision.exception() is None:
        problem.headers |= headers_of(decision.result())
    return problem
