"""The scheduler: requests that come at any time -> rows that share one base and one bounded memory, step by step.

A step reads a chunk of the prompts and writes one token of every row, each under its own experts. Keys and values lie
in a pool of a fixed size: rows are admitted by what fits, in the order of their requests; a row that grows beyond the
memory takes that of the youngest, which waits and continues later. What rows have read is kept while memory allows,
for prompts with the same beginning under the same weights. Knows nothing about HTTP or threads: one thread calls it.
"""

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
from torch.nn.utils.rnn import pad_sequence

from moesaic.errors import MemoryLimitError, MoesaicError, NonFiniteError, RecipeError, whole
from moesaic.generate.engine import Encoded, Engine
from moesaic.generate.flight import Flight
from moesaic.generate.request import Generation, Request, RoutingReport
from moesaic.generate.row import Row
from moesaic.model.mixture import Beginning, Begun, Chunked, Session
from moesaic.routing import Routing

SHORTEST = 16  # tokens of a prefix that is worth a copy
AHEAD = 4  # steps: prompts that routers have begun to read wait with at most so many steps' tokens, beyond one prompt


@dataclass(eq=False)
class Ticket:
    """A request in a scheduler. `rows`: its continuations, empty until its expert is decided.

    `begun`: what its router has read of the prompt. `cached`: the number of tokens of the prompt whose keys and values
    were there already. `error`: why it has ended without an answer. `cancelled`: its caller has no use for the answer.
    """

    request: Request
    encoded: Encoded
    number: int
    decided: Routing | None
    begun: Begun | None = None
    rows: list[Row] = field(default_factory=list)
    routing: RoutingReport | None = None
    cached: int = 0
    error: MoesaicError | None = None
    cancelled: bool = False

    @property
    def finished(self) -> bool:
        over = bool(self.rows) and all(row.finish for row in self.rows)
        return over or self.cancelled or self.error is not None

    @property
    def forced(self) -> bool:
        """Whether the router has no say."""
        return self.decided is not None

    def generations(self) -> list[Generation]:
        """The continuations so far; raises the error of a request that has failed."""
        if self.error is not None:
            raise self.error
        return [row.generation() for row in self.rows]


@dataclass(eq=False)
class Seat:
    """A row and its place: it waits (without a slot), then reads its tokens in chunks (with a session), then runs.

    `begun`: what a router has read of its prompt, until the row runs. `read`: the number of its tokens in the slot.
    `preempted`: it has lost a slot.
    """

    ticket: Ticket
    row: Row
    index: int
    routing: Routing
    begun: Begun | None = None
    slot: int = -1
    read: int = 0
    session: Session[Any] | None = None
    preempted: bool = False

    @property
    def order(self) -> tuple[int, int]:
        return self.ticket.number, self.index

    @property
    def tokens(self) -> list[int]:
        return self.row.given + self.row.ids

    @property
    def needed(self) -> int:
        """Tokens to have room for: the next one, or all after a preemption, so that none comes twice for nothing."""
        return len(self.row.given) + (self.row.limit if self.preempted else len(self.row.ids) + 1)

    @property
    def key(self) -> tuple[float, ...]:
        """The weights: only rows of the same have the same keys and values."""
        return tuple(self.routing.weights[0].tolist())


class Prefix(NamedTuple):
    """Tokens in a slot, read under the weights `key`."""

    key: tuple[float, ...]
    tokens: list[int]


class Scheduler:
    """Answers requests that come at any time, in a fixed memory.

    `memory`: the bytes of all keys and values, allocated at once; None: so many that 8,192 tokens fit, or the longest
    row. `rows`: the most rows in flight. `prefill`: the most tokens of prompts that are read in a step.
    Raises MemoryLimitError where a mixture under a budget has too little memory for these rows and its experts.
    """

    def __init__(self, engine: Engine, memory: int | None = None, rows: int = 16, prefill: int = 256):
        self.engine, self.mixture = (
            engine,
            cast(Chunked, engine.mixture),
        )  # every mixture that is loaded reads in chunks
        given = {"memory": memory, "rows": rows, "prefill": prefill}
        for name, value in given.items():
            if value is not None and whole(value, name) < 1:
                raise RecipeError("a scheduler needs some", field=name, expected=">= 1", got=value)
        self.rows, self.prefill = rows, prefill
        self.pool = self.mixture.pool(memory)
        engine.source.serve(self.pool.bound, rows, prefill)
        self.queue: deque[Ticket] = deque()  # undecided
        self.seats: dict[Row, Seat] = {}  # of rows that wait, read or run
        self.flight: Flight | None = None  # the rows that run
        self.kept: dict[int, Prefix] = {}  # by the slots of rows that have ended, the least recently used first
        self.changed: dict[Ticket, None] = {}  # since the last step
        self.count = 0

    # --- what a caller sees -------------------------------------------------------------------------------------------

    @property
    def bound(self) -> int:
        """The bytes that keys and values may take."""
        return self.pool.bound

    @property
    def used(self) -> int:
        """The bytes of rows in flight; those of `kept` rows beside them are given up when others need them."""
        return sum(self.pool.taken(seat.slot) for seat in self.inside())

    @property
    def running(self) -> int:
        """Requests with a row in flight."""
        return len({seat.ticket for seat in self.inside()})

    @property
    def waiting(self) -> int:
        """Requests without a row in flight."""
        return len(self.queue) + len({seat.ticket for seat in self.seats.values()}) - self.running

    @property
    def idle(self) -> bool:
        return not self.queue and not self.seats

    def submit(self, request: Request, routing: Routing | None = None, begun: Begun | None = None) -> Ticket:
        """Check and queue a request. `routing`: the decision about it, if its caller has made it; `begun`: with it.

        Raises the errors of `Engine.answer`, and MemoryLimitError for a request that never fits.
        """
        encoded = self.engine.read([request])
        (named,) = encoded.named
        if routing is None and named is not None:
            routing = self.engine.decision_of([named])
        # Of a decision that is still to come, only the least is known: the base alone.
        self.require_room(encoded, self.engine.decision_of([-1]) if routing is None else routing, True)
        self.count += 1
        ticket = Ticket(request, encoded, self.count, routing, self.affordable(begun))
        self.queue.append(ticket)
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """End a request: its rows write nothing more, and their memory is free."""
        if not ticket.finished:
            ticket.cancelled = True
            self.drop(ticket)

    @torch.inference_mode()
    def step(self) -> list[Ticket]:
        """Read a chunk of the prompts, and write a token of every row; returns the tickets that have changed."""
        self.make_room()
        self.admit()
        flights = self.read_prompts()
        if self.flight:
            flights.insert(0, self.flight.read(self.mixture))
            for row in self.flight.rows:
                self.seats[row].read += 1
        self.flight = Flight.join(flights, self.pool.start) if flights else None
        if self.flight:
            self.flight, lost = self.flight.write(self.engine.tokenizer.ends)
            self.fail_each(lost)
        if self.flight:
            rows = self.flight.rows
            self.changed |= dict.fromkeys(self.seats[row].ticket for row in rows)
            self.leave([row for row in rows if row.finish])
        changed, self.changed = [*self.changed], {}
        return changed

    # --- rows ---------------------------------------------------------------------------------------------------------

    def inside(self) -> list[Seat]:
        """Rows in flight, oldest first: they have slots."""
        return sorted((seat for seat in self.seats.values() if seat.slot >= 0), key=lambda seat: seat.order)

    def outside(self) -> list[Seat]:
        """Decided rows that wait, oldest first."""
        return sorted((seat for seat in self.seats.values() if seat.slot < 0), key=lambda seat: seat.order)

    def leave(self, rows: Collection[Row]) -> None:
        """Let rows go that have ended; what they have read is kept."""
        for row in rows:
            seat = self.seats.pop(row)
            if self.mixture.steady:
                self.kept[seat.slot] = Prefix(seat.key, seat.tokens[: seat.read])
            else:
                self.pool.free(seat.slot)
        self.land(rows)

    def land(self, rows: Collection[Row]) -> None:
        """Take rows out of the flight."""
        self.flight = self.flight.without(rows) if self.flight else None

    def drop(self, ticket: Ticket) -> None:
        """Take a request out, wherever it is."""
        self.changed[ticket] = None
        if ticket in self.queue:
            self.queue.remove(ticket)
        gone = {row: seat for row, seat in self.seats.items() if seat.ticket is ticket}
        for row, seat in gone.items():
            del self.seats[row]
            if seat.slot >= 0:
                self.pool.free(seat.slot)
        self.land(gone)

    def fail(self, ticket: Ticket, error: MoesaicError) -> None:
        ticket.error = error
        self.drop(ticket)

    def fail_each(self, rows: Collection[Row]) -> None:
        """The requests of these rows, whose logits are not finite, fail."""
        for row in rows:
            if row in self.seats:
                self.fail(self.seats[row].ticket, NonFiniteError("the model's logits are not finite"))

    # --- memory -------------------------------------------------------------------------------------------------------

    def require_room(self, encoded: Encoded, routing: Routing, forced: bool) -> None:
        tokens = int(encoded.prompts.lengths[0]) + encoded.limits[0]
        if (needed := self.pool.size(self.mixture.asked(routing, forced), tokens)) > self.bound:
            hint = "shorten the prompt or the continuation, or give the scheduler more memory"
            what, expected = "the request exceeds the memory of keys and values", f"at most {self.bound:,} bytes"
            raise MemoryLimitError(what, expected=expected, got=f"{needed:,} for {tokens:,} tokens", hint=hint)

    def affordable(self, begun: Begun | None) -> Begun | None:
        """What a router has read, unless waiting requests hold much of that already."""
        every = [*(ticket.begun for ticket in self.queue), *(seat.begun for seat in self.seats.values())]
        held = sum(one.tokens for one in {id(one): one for one in every if one}.values())
        return begun if begun and (not held or held + begun.tokens <= AHEAD * self.prefill) else None

    def make_room(self) -> None:
        """Widen the slots of rows that have filled theirs, oldest first; the youngest rows give way."""
        moved = False
        for row in sorted(self.flight.rows if self.flight else [], key=lambda row: self.seats[row].order):
            seat = self.seats[row]
            while seat.slot >= 0 and self.pool.capacity(seat.slot) <= seat.read:
                try:
                    self.pool.widen(seat.slot, seat.needed)
                    moved = True
                except MemoryLimitError:
                    if not self.give_up():
                        self.preempt(self.inside()[-1])
        if moved and self.flight:
            starts = [self.pool.start(slot) for slot in self.flight.session.slots]
            self.flight = self.flight.select(sorted(range(len(starts)), key=starts.__getitem__))

    def give_up(self, spared: int = -1) -> bool:
        """Free the slot of the prefix that has not been used for longest, `spared` only as the last; False: none."""
        slot = next((slot for slot in self.kept if slot != spared), spared)
        if slot not in self.kept:
            return False
        del self.kept[slot]
        self.pool.free(slot)
        return True

    def preempt(self, seat: Seat) -> None:
        """Take a row's memory; it waits, and reads its tokens again."""
        self.land([seat.row])
        self.pool.free(seat.slot)
        seat.slot, seat.read, seat.session, seat.preempted = -1, 0, None, True

    # --- requests that come -------------------------------------------------------------------------------------------

    def admit(self) -> None:
        """Give slots to waiting rows, in their order, until one does not fit.

        A row is passed over while another reads a beginning that both share.
        """
        free = self.rows - len(self.inside())
        for seat in self.arriving():
            if free <= 0:
                break
            source, shared, coming = self.prefix(seat)
            if not coming:
                if not self.place(seat, source, shared):
                    break
                free -= 1

    def arriving(self) -> Iterator[Seat]:
        """Rows that wait, and those of requests that are decided now: of these, no longer prompts than a step reads."""
        yield from self.outside()
        decided = 0
        while self.queue and decided < self.prefill:
            ticket = self.queue.popleft()
            decided += int(ticket.encoded.prompts.lengths[0])
            yield from self.decide(ticket)

    def decide(self, ticket: Ticket) -> list[Seat]:
        """The rows of a request, under the decision of its caller or of the router."""
        self.changed[ticket] = None
        encoded = ticket.encoded
        try:
            routing = ticket.decided
            if routing is None:
                routing, begun = self.engine.begun(encoded)
                ticket.begun = self.affordable(begun)
            self.require_room(encoded, routing, ticket.forced)
            encoded.notify(routing)
        except MoesaicError as error:
            ticket.error = error
            return []
        decisions = RoutingReport.each(self.mixture.names, routing)
        (ticket.routing,), (ticket.rows,) = decisions, encoded.begun(self.engine.tokenizer, decisions)
        seats = [Seat(ticket, row, index, routing, ticket.begun) for index, row in enumerate(ticket.rows)]
        self.seats |= zip(ticket.rows, seats, strict=True)
        ticket.begun = None
        return seats

    def prefix(self, seat: Seat) -> tuple[int, int, bool]:
        """A slot with the longest beginning of a row's tokens, how long it is (0: none is long enough), and whether a
        row is reading a longer one."""
        found, longest, most = -1, 0, 0
        if self.mixture.steady:
            key, tokens = seat.key, seat.tokens[:-1]  # the last one gives the logits
            inside = [(one.slot, one.read, Prefix(one.key, one.tokens)) for one in self.inside()]
            for slot, read, other in [*inside, *((slot, len(one.tokens), one) for slot, one in self.kept.items())]:
                if other.key == key:
                    shared = common(tokens, other.tokens)
                    most = max(most, shared)
                    if min(shared, read) > longest:
                        found, longest = slot, min(shared, read)
        return found, longest if longest >= SHORTEST else 0, most - longest >= SHORTEST

    def place(self, seat: Seat, source: int, shared: int) -> bool:
        """Give a row a slot, with the first `shared` tokens from another slot; False if it does not fit."""
        asked = self.mixture.asked(seat.routing, seat.ticket.forced)
        if self.used + self.pool.size(asked, seat.needed) > self.bound:
            return False
        while seat.slot < 0:
            try:
                seat.slot = self.pool.open(asked, seat.needed)
            except MemoryLimitError:
                if not self.give_up(source):
                    return False
        if not self.pool.held(source):
            shared = 0  # it was given up
        if shared:
            self.pool.copy(source, seat.slot, shared)
            if source in self.kept:
                self.kept[source] = self.kept.pop(source)  # the latest that was used
        known = torch.tensor([seat.tokens[:shared]], dtype=torch.long, device=self.engine.device)
        seat.session = self.mixture.begin(self.pool, seat.slot, known, seat.routing, seat.ticket.forced)
        seat.read = shared
        if seat.begun:
            cast(Beginning, self.mixture).take(seat.begun, seat.session)
        if seat.index == 0 and not seat.preempted:
            seat.ticket.cached = shared
        return True

    def read_prompts(self) -> list[Flight]:
        """Read the next tokens of rows that have not read all of theirs; the rows that now have, with their logits."""
        left, parts = self.prefill, list[tuple[Seat, list[int]]]()
        for seat in self.inside():
            if seat.session is not None and left:
                chunk = seat.tokens[seat.read : seat.read + left]
                left -= len(chunk)
                parts.append((seat, chunk))
        both = [[part for part in parts if (part[0].begun is not None) == begun] for begun in (True, False)]
        groups = [some for one in both for some in alike(one, self.mixture.steady)]
        return [flight for some in groups if (flight := self.read(some))]

    def read(self, parts: Sequence[tuple[Seat, list[int]]]) -> Flight | None:
        """Read a chunk of each of these rows in one pass; the rows that have read all their tokens."""
        parts = sorted(parts, key=lambda part: self.pool.start(part[0].slot))
        counts = [len(chunk) for _, chunk in parts]
        joined = Session.join([seat.session for seat, _ in parts if seat.session])
        spans = [(seat.begun, slice(seat.read, seat.read + len(chunk))) for seat, chunk in parts]
        if known := [begun.states[0, span] for begun, span in spans if begun]:
            states = pad_sequence(known, batch_first=True)
            logits, session = cast(Beginning, self.mixture).read_on(states, counts, joined)
        else:
            ids = [chunk + [0] * (max(counts) - len(chunk)) for _, chunk in parts]
            logits, session = self.mixture.read(torch.tensor(ids, device=self.engine.device), counts, joined)
        done = []
        for place, (seat, chunk) in enumerate(parts):
            seat.read += len(chunk)
            whole_row = seat.read == len(seat.tokens)
            seat.session = None if whole_row else session.select([place])
            seat.begun = None if whole_row else seat.begun
            done += [place] if whole_row else []
        flight = Flight([seat.row for seat, _ in parts], logits, session)
        return flight.select(done) if done else None


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """The number of tokens at the beginning that are the same."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def alike(parts: list[tuple[Seat, list[int]]], together: bool) -> list[list[tuple[Seat, list[int]]]]:
    """Chunks in groups for one pass each, so that at most half of a group is padding; not `together`: each alone."""
    groups = list[list[tuple[Seat, list[int]]]]()
    for part in sorted(parts, key=lambda part: -len(part[1])):
        if together and groups and 2 * len(part[1]) >= len(groups[-1][0][1]):
            groups[-1].append(part)
        else:
            groups.append([part])
    return groups
