"""The one thread in which the engine computes: decisions, steps, cancellations and swaps, one after another.

Other threads hand it functions to call, and get events back in their event loop. Knows nothing about HTTP.
"""

import asyncio
import logging
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from moesaic.errors import MoesaicError
from moesaic.generate.request import Generation
from moesaic.generate.row import Row
from moesaic.generate.sample import Logprob
from moesaic.generate.scheduler import Ticket
from moesaic.generate.trace import new_id
from moesaic.serve.choosing import Decision
from moesaic.serve.conversations import Conversations, Held
from moesaic.serve.metrics import Load, Metrics
from moesaic.serve.problems import Problem, problem_of
from moesaic.serve.version import Order, Version

T = TypeVar("T")
REMEMBERED = 1024
"""Decisions that are found by their id."""

log = logging.getLogger("moesaic.serve")


class Piece(NamedTuple):
    """Final text of one continuation since its last piece, and the tokens written since then."""

    choice: int
    text: str
    tokens: list[Logprob]


class Answer(NamedTuple):
    """A whole answer: the last event of an order that succeeds."""

    generations: list[Generation]
    read: int
    cached: int


@runtime_checkable
class Sink(Protocol):
    """Whoever follows an order: hears the decision, the first token, pieces of a stream, and how the order ended."""

    def decided(self, decision: Decision) -> None: ...
    def began(self) -> None: ...
    def add(self, piece: Piece) -> None: ...
    def done(self, answer: Answer) -> None: ...
    def failed(self, problem: Problem) -> None: ...


@dataclass(eq=False)
class Job:
    """An order under way. Only the worker's thread changes it."""

    order: Order
    sink: Sink
    started: float = field(default_factory=time.perf_counter)
    first: float | None = None
    version: Version | None = None
    decision: Decision | None = None
    ticket: Ticket | None = None
    sent: dict[int, tuple[int, int]] = field(default_factory=dict)  # characters and tokens of each continuation
    ended: bool = False

    @property
    def rows(self) -> list[Row]:
        return self.ticket.rows if self.ticket else []

    @property
    def expert(self) -> str:
        return self.decision.expert if self.decision else ""


class Worker:
    """Answers orders with the latest version of a model, in a thread of its own.

    `start`, `cancel`, `ask` and `swap` may be called from the event loop's thread; sinks are called there, too.
    """

    def __init__(self, version: Version, metrics: Metrics):
        self.versions, self.metrics, self.limits = [version], metrics, version.limits
        self.jobs: set[Job] = set()
        self.conversations = Conversations()
        self.decisions: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self.pace = 1.0  # seconds of an answer, the latest ones weighing most
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._outbox: list[Callable[[], None]] = []
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="moesaic-engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None

    # --- from the event loop ------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Begin to work for the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def close(self) -> None:
        """End all orders as aborted, and close the model and its trace."""
        self._inbox.put(self._stop)
        await asyncio.to_thread(self._thread.join)

    @property
    def healthy(self) -> bool:
        return self._thread.is_alive() and not self._stopping

    @property
    def version(self) -> Version:
        """The latest version, which answers new orders."""
        return self.versions[0]

    @property
    def full(self) -> bool:
        """As many answers are under way and waiting as the limits allow, or as many calls are handed over."""
        most = self.limits.rows + self.limits.queue
        return sum(job.order.n for job in [*self.jobs]) >= most or self._inbox.qsize() > 2 * most

    @property
    def retry_seconds(self) -> int:
        """When a full queue may have room: about the time in which the waiting answers are written."""
        waiting = max(1, len(self.jobs) - self.limits.rows)
        return min(60, max(1, round(self.pace * waiting / self.limits.rows)))

    def start(self, order: Order, sink: Sink) -> Job:
        """Take an order, whose events go to `sink`."""
        job = Job(order, sink)
        self.jobs.add(job)
        self._inbox.put(lambda: self._begin(job))
        return job

    def cancel(self, job: Job, finish: str = "aborted") -> None:
        """End an order before the next step, unless it has ended."""
        self._inbox.put(lambda: self._end(job, finish))

    async def ask(self, question: Callable[[], T]) -> T:
        """The result of a function that is called in the worker's thread; it raises what the function raises."""
        assert self._loop is not None
        loop, answer = self._loop, asyncio.get_running_loop().create_future()

        def settle(result: T | None, error: BaseException | None) -> None:
            if answer.cancelled():
                return
            if error is None:
                answer.set_result(result)
            else:
                answer.set_exception(error)

        def call() -> None:
            try:
                result = question()
            except Exception as error:
                loop.call_soon_threadsafe(settle, None, error)
            else:
                loop.call_soon_threadsafe(settle, result, None)

        self._inbox.put(call)
        return await answer

    async def swap(self, version: Version) -> None:
        """Answer new orders with another version; orders under way keep theirs."""
        await self.ask(lambda: self.versions.insert(0, version))

    # --- in the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._obey()
                for version in [*self.versions]:
                    self._step(version)
                self._retire()
                self._report()
        except Exception:
            log.exception("the engine has ended")
        self._stopping = True
        for job in self._under_way():
            self._refuse(job, Problem(503, "the server shuts down", code="shutting_down"), "aborted")
        self._report()
        for version in self.versions:
            version.model.close()

    def _under_way(self, version: Version | None = None) -> list[Job]:
        """The orders of a version, or all; a copy, as the event loop adds some meanwhile."""
        return [job for job in [*self.jobs] if version is None or job.version is version]

    def _obey(self) -> None:
        """Call functions that were handed over; without any job under way, wait for one."""
        wait = not self.jobs
        try:
            for _ in range(self.limits.rows):  # and no more, so that rows under way are not kept waiting
                if self._stopping:
                    return
                self._inbox.get(block=wait)()
                wait = False
        except queue.Empty:
            pass

    def _stop(self) -> None:
        self._stopping = True

    def _begin(self, job: Job) -> None:
        """Decide about an order, write the decision down, and submit it."""
        order, job.version = job.order, self.version
        if job.ended:
            return
        try:
            request = job.version.request(order)
            encoded = job.version.read(request)
            held = self.conversations.held(order.talk)
            decision, begun = job.version.decide(order, encoded, held, new_id())
            job.version.record(order, encoded.prompts, decision)
            job.decision = decision
            self._count(decision)
            self._outbox.append(partial(job.sink.decided, decision))
            routing = None if decision.reason != "forced" and job.version.routes_tokens else decision.routing
            job.ticket = job.version.scheduler.submit(request, routing, begun)
        except Problem as problem:
            self._refuse(job, problem)
        except Exception as error:
            self._fail(job, error)

    def _count(self, decision: Decision) -> None:
        metrics = self.metrics
        metrics.decisions.labels(decision.expert, decision.reason).inc()
        metrics.read.inc(decision.read)
        if decision.probabilities is not None:
            metrics.router.observe(decision.router_ms / 1e3)
            metrics.confidence.observe(decision.probabilities[decision.expert])
        if decision.held_from is not None and decision.reason in ("router", "abstained"):
            metrics.switches.inc()
        assert decision.id is not None
        self.decisions[decision.id] = {
            "routing": decision.facts,
            "tokens_made": None,
            "finish": None,
            "correction": None,
        }
        while len(self.decisions) > REMEMBERED:
            self.decisions.popitem(last=False)

    def _step(self, version: Version) -> None:
        """Write a token of every row of a version; a step that fails ends all orders of the version."""
        own = [job for job in self._under_way(version) if job.ticket]
        if not own:
            return
        try:
            version.scheduler.step()
        except Exception as error:
            log.exception("a step failed")
            for job in own:
                self._fail(job, error)
            version.restart()
            return
        for job in own:
            self._advance(job)

    def _advance(self, job: Job) -> None:
        """Send what a step has added to an order, and end it where nothing follows."""
        ticket = job.ticket
        assert ticket is not None
        if ticket.error is not None:
            self._fail(job, ticket.error)
            return
        if job.first is None and any(row.ids or row.finish for row in ticket.rows):
            job.first = time.perf_counter()
            self.metrics.first.observe(job.first - job.started)
            self.metrics.cached.inc(ticket.cached)
            self._outbox.append(job.sink.began)
        if job.order.stream:
            for index, row in enumerate(ticket.rows):
                self._send_piece(job, index, row)
        if ticket.finished:
            finishes = {row.finish for row in ticket.rows}
            answer = Answer(ticket.generations(), len(ticket.rows[0].given), ticket.cached)
            self._end(job, "length" if "length" in finishes else "stop")
            self._outbox.append(partial(job.sink.done, answer))

    def _send_piece(self, job: Job, index: int, row: Row) -> None:
        """Send the text of a continuation that is final, and with it the tokens that are new."""
        characters, tokens = job.sent.get(index, (0, 0))
        logprobs = row.logprobs[tokens:]
        if len(row.shown) > characters or (row.finish and logprobs):
            self._outbox.append(partial(job.sink.add, Piece(index, row.shown[characters:], logprobs)))
            job.sent[index] = len(row.shown), len(row.logprobs)

    def _fail(self, job: Job, error: Exception) -> None:
        problem = problem_of(error, job.order.params)
        if problem.status >= 500:
            log.error("an order failed", exc_info=error)
        self._refuse(job, problem)

    def _refuse(self, job: Job, problem: Problem, finish: str = "error") -> None:
        self._end(job, finish)
        self._outbox.append(partial(job.sink.failed, problem))

    def _end(self, job: Job, finish: str) -> None:
        """End an order once: free its slots, and write down the tokens that it made."""
        if job.ended:
            return
        job.ended = True
        if job.version and job.ticket and not job.ticket.finished:
            job.version.scheduler.cancel(job.ticket)
        self._settle(job, finish)
        self.jobs.discard(job)  # last: who sees no job under way finds all of them written down

    def _settle(self, job: Job, finish: str) -> None:
        """Write down how an order ended: in the trace, in the metrics, and in its conversation."""
        self.metrics.endings.labels(finish).inc()
        made, decision = sum(len(row.ids) for row in job.rows), job.decision
        if decision is None or decision.id is None or job.version is None:
            return
        now = time.perf_counter()
        self.metrics.written.labels(decision.expert).inc(made)
        self.metrics.whole.observe(now - job.started)
        self.pace += 0.1 * (now - job.started - self.pace)
        if job.first is not None and made > len(job.rows):
            self.metrics.between.observe((now - job.first) * len(job.rows) / (made - len(job.rows)))
        if (known := self.decisions.get(decision.id)) is not None:
            known |= {"tokens_made": made, "finish": finish}
        answered = [row.text for row in job.rows]
        held, shares = self.conversations.held(job.order.talk), decision.probabilities
        held = held if shares is None else Held(decision.expert, shares)
        if held is not None and answered:
            self.conversations.hold(job.order.talk, answered, held)
        if job.version.model.trace is not None:
            try:
                job.version.model.trace.ended(decision.id, made, finish)
            except MoesaicError as error:
                log.error("the trace lacks the end of %s: %s", decision.id, error)

    def peek(self, order: Order) -> Decision:
        """The decision that an order would get now; nothing is recorded. For `ask`."""
        version = self.version
        encoded = version.read(version.request(order))
        return version.decide(order, encoded, self.conversations.held(order.talk), None)[0]

    def recorded(self, id: str) -> dict[str, Any]:
        """What is known of one of the latest decisions. Raises a Problem for an unknown one. For `ask`."""
        if id not in self.decisions:
            message = f"no decision has this id; the server remembers the latest {REMEMBERED:,}, its trace has all"
            raise Problem(404, message, code="decision_not_found", param="id")
        return self.decisions[id]

    def correct(self, id: str, expert: str | None) -> dict[str, Any]:
        """Write a correction into the trace. Raises a Problem for an unknown decision or expert. For `ask`."""
        known = self.recorded(id)
        if expert is not None:
            self.version.catalogue.require(expert, "expert")
        trace = self.version.model.trace
        if trace is None:
            message = "there is no trace to write the correction to; start the server with --trace FILE"
            raise Problem(409, message, code="no_trace")
        trace.correct(id, expert)
        known["correction"] = expert
        self.metrics.corrections.inc()
        return known

    def _retire(self) -> None:
        """Close versions that have no more orders."""
        for version in self.versions[1:]:
            if not self._under_way(version):
                self.versions.remove(version)
                version.model.close()

    def _report(self) -> None:
        """Send all events of this round at once, and say what is under way."""
        jobs, schedulers = self._under_way(), [version.scheduler for version in self.versions]
        self.metrics.load = Load(
            running=sum(scheduler.running for scheduler in schedulers),
            waiting=sum(scheduler.waiting for scheduler in schedulers),
            running_experts=tuple(job.expert for job in jobs if job.first is not None),
            waiting_experts=tuple(job.expert for job in jobs if job.first is None),
            used=sum(scheduler.used for scheduler in schedulers),
            bound=sum(scheduler.bound for scheduler in schedulers),
            experts=len(self.version.catalogue.experts),
            conversations=len(self.conversations),
        )
        events, self._outbox = self._outbox, []
        if events and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(deliver, events)


def deliver(events: list[Callable[[], None]]) -> None:
    for event in events:
        event()
