"""The engine: requests -> continuations, from any routed mixture. Rows advance together; each leaves when it finishes.

Knows nothing about experts, files, chat templates or HTTP: it needs a mixture that is `Routed`, and a `Tokenizing`.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor

from moesaic.errors import DataError, MemoryLimitError, RecipeError, nearest
from moesaic.generate.request import BASE, Generation, Listener, Prompt, Request, RoutingReport, Settings
from moesaic.generate.row import Row, Tokenizing
from moesaic.generate.sample import Logprob, choose
from moesaic.model.features import Prompts
from moesaic.model.mixture import Routed, Session
from moesaic.model.source import HELD, ExpertSource
from moesaic.routing import Routing
from moesaic.routing.controls import oracle
from moesaic.tokenizer import Conversation

NEW = 128  # tokens of a continuation by default


class Encoded(NamedTuple):
    """Encoded requests: their prompts as one batch, the maximal numbers of new tokens, and the index of the expert that
    each names: -1 for the base, None for the router's choice."""

    requests: list[Request]
    prompts: Prompts
    limits: list[int]
    named: list[int | None]

    @property
    def tokens(self) -> int:
        """Tokens per row, prompt and answer together."""
        lengths = self.prompts.lengths.tolist()
        whole = (length + limit for length, limit in zip(lengths, self.limits, strict=True))
        return max(self.prompts.ids.shape[1], *whole)

    @property
    def rows(self) -> int:
        return sum(request.n for request in self.requests)

    def some(self, places: Sequence[int]) -> "Encoded":
        """Some of the requests, padded as before, so that their answers do not depend on the others."""
        if len(places) == len(self.requests):
            return self
        at = torch.tensor(places, dtype=torch.long, device=self.prompts.ids.device)
        texts = [self.prompts.texts[place] for place in places]
        prompts = Prompts(self.prompts.ids[at], self.prompts.lengths[at], texts)
        limits, named = [self.limits[place] for place in places], [self.named[place] for place in places]
        return Encoded([self.requests[place] for place in places], prompts, limits, named)

    def notify(self, routing: Routing) -> None:
        for place, request in enumerate(self.requests):
            if request.listener:
                alone = self.some([place]).prompts
                forced = request.expert is not None
                request.listener([request.prompt], alone, routing[place : place + 1], forced, request.raw)


class Group(NamedTuple):
    """Requests that are answered together, by index, and their experts."""

    experts: tuple[int, ...]
    places: list[int]


def groups(routing: Routing | None, count: int, most: int) -> list[Group]:
    """All requests in groups of at most `most`, by their experts; without a routing, in their order."""
    chosen = [()] * count if routing is None else [tuple(row.nonzero().flatten().tolist()) for row in routing.weights]
    places: dict[tuple[int, ...], list[int]] = {}
    for place, experts in enumerate(chosen):
        places.setdefault(experts, []).append(place)
    starts = [(experts, own, start) for experts, own in places.items() for start in range(0, len(own), most)]
    return [Group(experts, own[start : start + most]) for experts, own, start in starts]


@dataclass(frozen=True)
class Engine:
    """Generates with a mixture; calls do not depend on earlier calls.

    `device`: the mixture's; None: torch's default device. `listener`: of the requests of `generate` and `stream`.
    `source`: the mixture's own; if its experts do not all fit into memory, rows of the same experts are answered to
    their end before others, so that each expert is fetched once.
    """

    mixture: Routed
    tokenizer: Tokenizing
    device: torch.device | None = None
    listener: Listener | None = None
    source: ExpertSource = HELD

    def generate(
        self, prompts: Sequence[Prompt], *, n: int = 1, **settings: Unpack[Settings]
    ) -> list[list[Generation]]:
        """n continuations of every prompt, all with the same settings: see `Request` and `answer`."""
        return self.answer([Request(prompt=one, n=n, listener=self.listener, **settings) for one in prompts])

    def answer(self, requests: Sequence[Request]) -> list[list[Generation]]:
        """The continuations of every request, in one batch if memory suffices; routed once, from the prompt, unless a
        request names its expert.

        A continuation has at least one token: the end of text is never the first.
        Raises RecipeError for a prompt that is empty or exceeds the context, and for an unknown expert.
        """
        if not requests:
            return []
        encoded, n = self.read(requests), max(request.n for request in requests)
        made = dict[int, list[Generation]]()
        most = max(1, self.source.rows(encoded.tokens) // n)
        with self.source.turn(min(encoded.rows, most * n), encoded.tokens):
            decided = None
            if self.source.sorts:
                decided = self.decided(encoded, most)
                encoded.notify(decided)
            left = groups(decided, len(requests), most)
            following = self.cheapest(left)
            while group := following:
                with self.source.using(group.experts):
                    if following := self.cheapest(left):
                        self.source.expect(following.experts)
                    own = encoded.some(group.places)
                    batch = Batch(self, own.rows, own.tokens)
                    at = torch.tensor(group.places, device=self.device)
                    rows = batch.enter(own) if decided is None else batch.place(own, decided[at])
                    while batch.rows:
                        batch.step()
                made |= zip(group.places, ([row.generation() for row in some] for some in rows), strict=True)
        return [made[place] for place in range(len(requests))]

    def cheapest(self, left: list[Group]) -> Group | None:
        """Remove and return the group with the fewest bytes to fetch."""
        if not left:
            return None
        return left.pop(min(range(len(left)), key=lambda place: self.source.missing(left[place].experts)))

    def stream(self, prompt: Prompt, **settings: Unpack[Settings]) -> Generator[str, None, Generation]:
        """Yield the text of one continuation piece by piece as it becomes final, and return the Generation.

        Raises the errors of `answer` at the call.
        """
        encoded = self.read([Request(prompt=prompt, listener=self.listener, **settings)])
        self.source.rows(encoded.tokens)
        return self.pieces(encoded)

    def pieces(self, encoded: Encoded) -> Generator[str, None, Generation]:
        """Yield the final text of a single row; a second answer waits meanwhile."""
        with self.batch(1, encoded.tokens) as batch:
            (((row,),), sent) = batch.enter(encoded), 0
            while not row.finish:
                batch.step()
                if len(row.shown) > sent:
                    yield row.shown[sent:]
                    sent = len(row.shown)
        return row.generation()

    @contextmanager
    def batch(self, rows: int, tokens: int) -> Iterator["Batch"]:
        with self.source.turn(rows, tokens):
            yield Batch(self, rows, tokens)

    def route(self, prompts: Sequence[Prompt], raw: bool = False) -> list[RoutingReport]:
        """The router's decision about each prompt; `raw`: see `Request`."""
        if not prompts:
            return []
        encoded = self.read([Request(prompt=prompt, raw=raw) for prompt in prompts], [0] * len(prompts))
        most = self.source.rows(encoded.tokens)
        with self.source.turn(min(most, len(prompts)), encoded.tokens):
            return RoutingReport.each(self.mixture.names, self.decided(encoded, most))

    @torch.inference_mode()
    def decided(self, encoded: Encoded, most: int) -> Routing:
        """The decision about each request, of its caller or of the router, which reads `most` prompts at once."""
        free = [place for place, expert in enumerate(encoded.named) if expert is None]
        pieces = [self.mixture.route(encoded.some(free[at : at + most]).prompts) for at in range(0, len(free), most)]
        if len(free) == len(encoded.named):
            return Routing.cat(pieces)
        named = self.decision_of([-1 if expert is None else expert for expert in encoded.named])
        return named.put(torch.tensor(free, device=self.device), Routing.cat(pieces)) if free else named

    def decision_of(self, experts: list[int]) -> Routing:
        weights = oracle(torch.tensor(experts), len(self.mixture.names)).to(self.device)
        return Routing(weights, weights.log())

    def read(self, requests: Sequence[Request], limits: list[int] | None = None) -> Encoded:
        """Encode requests; refuse prompts that are empty or leave no room for an answer of `limits` tokens."""
        usual = max(1, min(NEW, self.mixture.context // 2))
        limits = limits or [usual if one.max_new_tokens is None else one.max_new_tokens for one in requests]
        named, prompts = [self.index(request.expert) for request in requests], [one.prompt for one in requests]
        for index, text in enumerate(prompts):
            if isinstance(text, str) and any("\ud800" <= character <= "\udfff" for character in text):
                raise RecipeError("the prompt is not Unicode text", field=f"prompts[{index}]", hint="send it as UTF-8")
        both = enumerate(zip(prompts, requests, strict=True))
        rows = [one if isinstance(one, list) else self.begin(one, index, request.raw) for index, (one, request) in both]
        texts = [self.tokenizer.decode(ids) for ids in rows]
        context = self.mixture.context
        for index, (one, ids, new) in enumerate(zip(prompts, rows, limits, strict=True)):
            if not one or not ids:
                raise RecipeError("the prompt is empty", field=f"prompts[{index}]")
            if len(ids) + new > context:
                what, hint = (
                    "prompt and continuation exceed the model's context",
                    "shorten the prompt, or the continuation",
                )
                expected, got = f"at most {context} tokens", f"{len(ids)} of the prompt + {new} new"
                raise RecipeError(what, field=f"prompts[{index}]", expected=expected, got=got, hint=hint)
        return Encoded(list(requests), Prompts.pad(rows, texts, self.device), limits, named)

    def begin(self, prompt: str | Conversation, index: int, raw: bool) -> list[int]:
        try:
            return self.tokenizer.begin(prompt, raw)
        except DataError as error:
            error.field = f"prompts[{index}].{error.field}"
            raise

    def index(self, expert: str | None) -> int | None:
        """The index of a named expert; -1 for the base, None without a name."""
        if expert is None:
            return None
        known = [*self.mixture.names, BASE]
        if expert not in known:
            hint = nearest(expert, known)
            raise RecipeError("no such expert", field="expert", expected=" or ".join(known), got=expert, hint=hint)
        return -1 if expert == BASE else known.index(expert)


def report(logits: Tensor, rows: Sequence[Row], ids: Sequence[int]) -> None:
    """Append the log-probability of each row's new token, and those of the most probable tokens, where asked."""
    for place, (row, id) in enumerate(zip(rows, ids, strict=True)):
        if (most := row.request.logprobs) is not None and id not in row.tokenizer.ends:
            shares = logits[place].float().log_softmax(-1)
            values, found = shares.topk(most)
            top = tuple(zip(found.tolist(), values.tolist(), strict=True))
            row.logprobs.append(Logprob(id, float(shares[id]), top))


class Flight(NamedTuple):
    """Rows in flight, and for each the logits of the next token, or a chosen token that is not read yet."""

    rows: list[Row]
    following: Tensor
    session: Session[Any]

    def select(self, places: Sequence[int]) -> "Flight":
        kept = torch.tensor(places, dtype=torch.long, device=self.following.device)
        return Flight([self.rows[place] for place in places], self.following[kept], self.session.select(places))

    @staticmethod
    def join(flights: Sequence["Flight"]) -> "Flight":
        """All rows, in the order of their slots, so that neighbours are computed in one piece."""
        if len(flights) == 1:
            return flights[0]
        session = Session.join([flight.session for flight in flights])
        rows = [row for flight in flights for row in flight.rows]
        joined = Flight(rows, torch.cat([flight.following for flight in flights]), session)
        order = sorted(range(len(rows)), key=lambda place: session.slots[place])
        return joined if order == [*range(len(rows))] else joined.select(order)


class Batch:
    """Rows in flight, in memory that is allocated once for so many `rows` of so many `tokens`.

    `admit` requests at any time, also while others run; each `step` writes one token of every row. A finished or
    released row frees its slot. Rows may differ in all settings, and each gets the same text as alone.
    """

    @torch.inference_mode()
    def __init__(self, engine: Engine, rows: int, tokens: int):
        self.engine, self.tokens = engine, tokens
        self.room = engine.mixture.room(rows, tokens)
        self.running: Flight | None = None
        self.fresh: list[Flight] = []  # admitted since the last step

    @property
    def rows(self) -> list[Row]:
        return [row for flight in (self.running, *self.fresh) if flight for row in flight.rows]

    @property
    def free(self) -> int:
        return len(self.room.spare)

    def admit(self, requests: Sequence[Request]) -> list[list[Row]]:
        """Read and route the prompts of these requests; returns the rows of each, for `step` to write.

        Raises the errors of `Engine.answer`, and MemoryLimitError if free slots are too few or too short; then no
        request is admitted.
        """
        return self.enter(self.engine.read(requests)) if requests else []

    def enter(self, encoded: Encoded) -> list[list[Row]]:
        """Admit encoded requests: those for the router, and those that name an expert."""
        if encoded.rows > self.free:
            expected, hint = f"at most {self.free} more rows", "wait until rows finish, or make a larger batch"
            raise MemoryLimitError("the batch is full", expected=expected, got=encoded.rows, hint=hint)
        free = [place for place, expert in enumerate(encoded.named) if expert is None]
        others = [place for place, expert in enumerate(encoded.named) if expert is not None]
        flights, found = list[Flight](), dict[int, list[Row]]()
        try:
            for places in filter(None, (free, others)):
                own = encoded.some(places)
                named = [expert for expert in own.named if expert is not None]
                flight, rows, decided = self.begin(own, self.engine.decision_of(named) if named else None)
                flights.append(flight)
                found |= zip(places, rows, strict=True)
                own.notify(decided)
        except BaseException:
            self.room.free([slot for flight in flights for slot in flight.session.slots])
            raise
        self.fresh += flights
        return [found[place] for place in range(len(encoded.named))]

    def place(self, encoded: Encoded, decided: Routing) -> list[list[Row]]:
        """Admit requests that are decided, and whose listeners have been notified."""
        flight, rows, _ = self.begin(encoded, decided)
        self.fresh.append(flight)
        return rows

    @torch.inference_mode()
    def begin(self, encoded: Encoded, decided: Routing | None) -> tuple[Flight, list[list[Row]], Routing]:
        """Read prompts into free slots: their rows, also by request, and the decision about each request."""
        if encoded.tokens > self.tokens:
            what, hint = "prompt and continuation exceed the batch's slots", "make a batch of longer rows"
            raise MemoryLimitError(what, expected=f"at most {self.tokens} tokens", got=encoded.tokens, hint=hint)
        engine, taken = self.engine, self.room.spare.take(encoded.rows)
        ends = accumulate(request.n for request in encoded.requests)
        slots = [taken[end - request.n : end] for request, end in zip(encoded.requests, ends, strict=True)]
        try:
            logits, session = engine.mixture.prefill(encoded.prompts, self.room, [some[0] for some in slots], decided)
            decision = session.routing
            logits[:, list(engine.tokenizer.ends)] = float("-inf")  # an answer has at least one token
            if len(taken) > len(slots):
                counts = torch.tensor([len(some) for some in slots], device=logits.device)
                logits, session = logits.repeat_interleave(counts, 0), session.repeat(slots)
        except BaseException:
            self.room.free(taken)
            raise
        prompts, reports = encoded.prompts, RoutingReport.each(engine.mixture.names, decision)
        given = [ids[:length] for ids, length in zip(prompts.ids.tolist(), prompts.lengths.tolist(), strict=True)]
        rows = []
        for request, ids, limit, report in zip(encoded.requests, given, encoded.limits, reports, strict=True):
            generators = request.sampling.generators(request.n)
            rows.append([Row(engine.tokenizer, request, ids, limit, generator, report) for generator in generators])
        return Flight([row for some in rows for row in some], logits, session), rows, decision

    @torch.inference_mode()
    def step(self) -> list[Row]:
        """Write one token of every row; returns the rows that finished, whose slots are free again."""
        flights = [*([self.read_on(self.running)] if self.running else []), *self.fresh]
        if not flights:
            return []
        rows, logits, session = Flight.join(flights)
        ids = choose(logits, [row.request.sampling for row in rows], [row.generator for row in rows])
        for row, id in zip(rows, ids.tolist(), strict=True):
            row.add(id)
        report(logits, rows, ids.tolist())
        self.running, self.fresh = Flight(rows, ids.to(logits.device), session), []
        finished = [row for row in rows if row.finish]
        self.release(finished)
        return finished

    def read_on(self, flight: Flight) -> Flight:
        logits, session = self.engine.mixture.decode(flight.following, flight.session)
        return Flight(flight.rows, logits, session)

    @torch.inference_mode()
    def release(self, rows: Sequence[Row]) -> None:
        """Drop these rows, finished or not, and free their slots; a row that is not in flight has none."""

        def without(flight: Flight) -> Flight | None:
            gone = [place for place, row in enumerate(flight.rows) if row in rows]
            self.room.free([flight.session.slots[place] for place in gone])
            kept = [place for place in range(len(flight.rows)) if place not in gone]
            return flight if not gone else flight.select(kept) if kept else None

        if rows:
            self.running = without(self.running) if self.running else None
            self.fresh = [left for flight in self.fresh if (left := without(flight))]
