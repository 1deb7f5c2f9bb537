"""Requests in flight: admitted when a slot is free, one token of every row a step.

Knows nothing about threads or HTTP.
"""

from collections import deque
from dataclasses import dataclass, field

from moesaic.errors import MoesaicError
from moesaic.generate.engine import Batch, Engine
from moesaic.generate.request import Generation, Request, RoutingReport
from moesaic.generate.row import Row
from moesaic.routing import Routing

LONGEST = 2048  # tokens of a slot


@dataclass(eq=False)
class Ticket:
    """A submitted request: its rows once they are admitted, until `finished`."""

    request: Request
    decided: Routing | None
    rows: list[Row] = field(default_factory=list)
    finished: bool = False
    error: MoesaicError | None = None
    cached: int = 0

    @property
    def routing(self) -> RoutingReport | None:
        return self.rows[0].routing if self.rows else None

    def generations(self) -> list[Generation]:
        return [row.generation() for row in self.rows]


class Scheduler:
    """Requests of one engine, in slots that are allocated once."""

    def __init__(self, engine: Engine, memory: int | None = None, rows: int = 16, prefill: int = 256):
        self.engine, self.rows, self.bound = engine, rows, memory or 0
        self.batch = Batch(engine, rows, min(engine.mixture.context, LONGEST))
        self.queue: deque[Ticket] = deque()
        self.inside: list[Ticket] = []

    @property
    def idle(self) -> bool:
        return not self.queue and not self.inside

    @property
    def running(self) -> int:
        return len(self.inside)

    @property
    def waiting(self) -> int:
        return len(self.queue)

    @property
    def used(self) -> int:
        return 0

    def submit(self, request: Request, routing: Routing | None = None) -> Ticket:
        """Queue a request; raises the errors of `Engine.answer`."""
        self.engine.read([request])
        ticket = Ticket(request, routing)
        self.queue.append(ticket)
        return ticket

    def step(self) -> list[Ticket]:
        """Admit what fits, write one token of every row, and return the tickets that ended."""
        ended = []
        while self.queue and self.queue[0].request.n <= self.batch.free:
            ticket = self.queue.popleft()
            try:
                encoded = self.engine.read([ticket.request])
                decided = ticket.decided
                (ticket.rows,) = self.batch.enter(encoded) if decided is None else self.batch.place(encoded, decided)
                self.inside.append(ticket)
            except MoesaicError as error:
                ticket.error, ticket.finished = error, True
                ended.append(ticket)
        self.batch.step()
        for ticket in [one for one in self.inside if all(row.finish for row in one.rows)]:
            ticket.finished = True
            self.inside.remove(ticket)
            ended.append(ticket)
        return ended

    def cancel(self, ticket: Ticket) -> None:
        """Drop a request and free its slots."""
        if ticket in self.queue:
            self.queue.remove(ticket)
        if ticket in self.inside:
            self.inside.remove(ticket)
            self.batch.release(ticket.rows)
