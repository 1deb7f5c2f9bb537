"""The engine: requests -> continuations, from any routed mixture. Rows advance together; each leaves when it finishes.

Knows nothing about experts, files, chat templates or HTTP; what it asks of a mixture is `Routed`, of text `Tokenizing`.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from moesaic.errors import DataError, MemoryLimitError, RecipeError, nearest
from moesaic.generate.request import BASE, Generation, Listener, Prompt, Request, RoutingReport
from moesaic.generate.row import Row, Tokenizing
from moesaic.generate.sample import GREEDY, Sampling, choose
from moesaic.model.features import Prompts
from moesaic.model.mixture import Routed, Session
from moesaic.model.source import HELD, ExpertSource
from moesaic.routing import Routing
from moesaic.routing.controls import oracle
from moesaic.tokenizer import Conversation

NEW = 128


class Asked(NamedTuple):
    """Requests as a mixture reads them: their prompts as one batch, the tokens that each may write at most, and the
    index of the expert that each names, -1 for the base, None where the router decides."""

    requests: list[Request]
    prompts: Prompts
    limits: list[int]
    named: list[int | None]

    @property
    def tokens(self) -> int:
        """Room that each row needs, prompt and answer together."""
        lengths = self.prompts.lengths.tolist()
        whole = (length + limit for length, limit in zip(lengths, self.limits, strict=True))
        return max(self.prompts.ids.shape[1], *whole)

    @property
    def rows(self) -> int:
        """Continuations, of all requests together."""
        return sum(request.n for request in self.requests)

    def some(self, places: Sequence[int]) -> "Asked":
        """Some of the requests, as wide as beside the others: what they get does not depend on who is left out."""
        if len(places) == len(self.requests):
            return self
        at = torch.tensor(places, dtype=torch.long, device=self.prompts.ids.device)
        texts = [self.prompts.texts[place] for place in places]
        prompts = Prompts(self.prompts.ids[at], self.prompts.lengths[at], texts)
        limits, named = [self.limits[place] for place in places], [self.named[place] for place in places]
        return Asked([self.requests[place] for place in places], prompts, limits, named)

    def tell(self, routing: Routing) -> None:
        """Call each request's listener with the decision about it."""
        for place, request in enumerate(self.requests):
            if request.listener:
                alone = self.some([place]).prompts
                request.listener([request.prompt], alone, routing[place : place + 1], request.expert is not None)


class Part(NamedTuple):
    """Requests that are answered together, by their places, and the experts that these ask."""

    experts: tuple[int, ...]
    places: list[int]


def parts(routing: Routing | None, count: int, most: int) -> list[Part]:
    """All requests, those of the same experts together, at most so many at once; without a routing, in their order."""
    chosen = [()] * count if routing is None else [tuple(row.nonzero().flatten().tolist()) for row in routing.weights]
    places: dict[tuple[int, ...], list[int]] = {}
    for place, experts in enumerate(chosen):
        places.setdefault(experts, []).append(place)
    return [
        Part(experts, own[start : start + most])
        for experts, own in places.items()
        for start in range(0, len(own), most)
    ]


@dataclass(frozen=True)
class Engine:
    """Generates with a mixture; every method may be called any number of times, nothing is kept in between.

    `device`: where the mixture stands; None: torch's default device. `listener`: of the requests that `generate` and
    `stream` make. `source`: the mixture's own; where its experts do not all fit into memory, rows of the same experts
    are answered to their end before the next are: each is fetched once.
    """

    mixture: Routed
    tokenizer: Tokenizing
    device: torch.device | None = None
    listener: Listener | None = None
    source: ExpertSource = HELD

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int | None = None,
        sampling: Sampling = GREEDY,
        n: int = 1,
        stop: tuple[str, ...] = (),
        expert: str | None = None,
    ) -> list[list[Generation]]:
        """n continuations of every prompt, all with the same settings: see `Request` and `answer`."""
        one = partial(Request, limit=max_new_tokens, sampling=sampling, stop=stop, expert=expert, n=n)
        return self.answer([one(prompt=prompt, listener=self.listener) for prompt in prompts])

    def answer(self, requests: Sequence[Request]) -> list[list[Generation]]:
        """The continuations of every request, in one batch where there is memory; routed once, from the prompt, unless
        a request names its expert.

        A continuation has at least one token: the end of text never comes first.
        Raises RecipeError for an empty prompt, one that does not fit the context, and an unknown expert.
        """
        if not requests:
            return []
        asked = self.read(requests)
        made = dict[int, list[Generation]]()
        most = max(1, self.source.rows(asked.tokens) // max(request.n for request in requests))
        with self.source.turn(min(asked.rows, most * max(request.n for request in requests)), asked.tokens):
            decided = None
            if self.source.sorts:
                decided = self.decided(asked, most)
                asked.tell(decided)
            left = parts(decided, len(requests), most)
            following = self.cheapest(left)
            while part := following:
                with self.source.using(part.experts):
                    if following := self.cheapest(left):
                        self.source.expect(following.experts)
                    own = asked.some(part.places)
                    batch = Batch(self, own.rows, own.tokens)
                    at = torch.tensor(part.places, device=self.device)
                    rows = batch.enter(own) if decided is None else batch.place(own, decided[at])
                    while batch.rows:
                        batch.step()
                made |= {
                    place: [row.generation() for row in some] for place, some in zip(part.places, rows, strict=True)
                }
        return [made[place] for place in range(len(requests))]

    def cheapest(self, parts: list[Part]) -> Part | None:
        """The part that the least must be fetched for, taken from those left; None: there is none."""
        if not parts:
            return None
        return parts.pop(min(range(len(parts)), key=lambda place: self.source.missing(parts[place].experts)))

    def stream(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int | None = None,
        sampling: Sampling = GREEDY,
        stop: tuple[str, ...] = (),
        expert: str | None = None,
    ) -> Generator[str, None, Generation]:
        """The text of one continuation, piece by piece as it becomes certain; `generate` without the waiting.

        Refuses what `generate` refuses, at the call. Returns the whole Generation to whoever uses `yield from`.
        """
        one = Request(prompt=prompt, limit=max_new_tokens, sampling=sampling, stop=stop, expert=expert)
        asked = self.read([replace(one, listener=self.listener)])
        self.source.rows(asked.tokens)
        return self.pieces(asked)

    def pieces(self, asked: Asked) -> Generator[str, None, Generation]:
        """What each step adds to the certain text of a single row, while no other answer is written."""
        with self.batch(1, asked.tokens) as batch:
            (((row,),), sent) = batch.enter(asked), 0
            while not row.finish:
                batch.step()
                if len(row.shown) > sent:
                    yield row.shown[sent:]
                    sent = len(row.shown)
        return row.generation()

    @contextmanager
    def batch(self, rows: int, tokens: int) -> Iterator["Batch"]:
        """A batch with room for so many rows of so many tokens, prompt and answer together."""
        with self.source.turn(rows, tokens):
            yield Batch(self, rows, tokens)

    def route(self, prompts: Sequence[Prompt]) -> list[RoutingReport]:
        """Who would answer each prompt."""
        if not prompts:
            return []
        asked = self.encoded([Request(prompt=prompt) for prompt in prompts], [0] * len(prompts))
        most = self.source.rows(asked.tokens)
        with self.source.turn(min(most, len(prompts)), asked.tokens):
            return self.reports(self.decided(asked, most))

    @torch.inference_mode()
    def decided(self, asked: Asked, most: int) -> Routing:
        """The decision about each request: of its caller, or of the router, for at most so many prompts at once."""
        free = [place for place, expert in enumerate(asked.named) if expert is None]
        pieces = [self.mixture.route(asked.some(free[at : at + most]).prompts) for at in range(0, len(free), most)]
        if len(free) == len(asked.named):
            return Routing.cat(pieces)
        named = self.decision_of([-1 if expert is None else expert for expert in asked.named])
        return named.put(torch.tensor(free, device=self.device), Routing.cat(pieces)) if free else named

    def decision_of(self, experts: list[int]) -> Routing:
        """The decisions that callers make in the router's place; -1: the base."""
        weights = oracle(torch.tensor(experts), len(self.mixture.names)).to(self.device)
        return Routing(weights, weights.log())

    def read(self, requests: Sequence[Request]) -> Asked:
        """Requests as the mixture reads them, if each has a prompt and leaves room for its answer."""
        usual = max(1, min(NEW, self.mixture.context // 2))
        limits = [usual if request.limit is None else request.limit for request in requests]
        return self.encoded(requests, limits)

    def encoded(self, requests: Sequence[Request], limits: list[int]) -> Asked:
        """The prompts as one batch of tokens, if each has any and leaves room for as many more as its limit."""
        named, prompts = [self.index(request.expert) for request in requests], [one.prompt for one in requests]
        for index, text in enumerate(prompts):
            if isinstance(text, str) and any("\ud800" <= character <= "\udfff" for character in text):
                raise RecipeError("the prompt is not Unicode text", field=f"prompts[{index}]", hint="send it as UTF-8")
        rows = [one if isinstance(one, list) else self.begin(one, index) for index, one in enumerate(prompts)]
        both = zip(prompts, rows, strict=True)
        texts = [one if isinstance(one, str) else self.tokenizer.decode(ids) for one, ids in both]
        context = self.mixture.context
        for index, (one, ids, new) in enumerate(zip(prompts, rows, limits, strict=True)):
            if not one or not ids:
                raise RecipeError("the prompt is empty", field=f"prompts[{index}]")
            if len(ids) + new > context:
                raise RecipeError(
                    "the prompt and what is to follow exceed the model's context",
                    field=f"prompts[{index}]",
                    expected=f"at most {context} tokens",
                    got=f"{len(ids)} of the prompt + {new} new",
                    hint="shorten the prompt, or ask for fewer new tokens",
                )
        return Asked(list(requests), Prompts.pad(rows, texts, self.device), limits, named)

    def begin(self, prompt: str | Conversation, index: int) -> list[int]:
        """The ids of a prompt; a conversation that the base's template refuses is named by its `index`."""
        try:
            return self.tokenizer.begin(prompt)
        except DataError as error:
            error.field = f"prompts[{index}].{error.field}"
            raise

    def index(self, expert: str | None) -> int | None:
        """The index of the expert that a caller names; -1: the base, None: nobody is named."""
        if expert is None:
            return None
        known = [*self.mixture.names, BASE]
        if expert not in known:
            hint = nearest(expert, known)
            raise RecipeError("no such expert", field="expert", expected=" or ".join(known), got=expert, hint=hint)
        return -1 if expert == BASE else known.index(expert)

    def reports(self, routing: Routing) -> list[RoutingReport]:
        names = [*self.mixture.names, BASE]  # an abstaining row's best is -1
        rows = zip(routing.weights.tolist(), routing.best.tolist(), strict=True)
        return [RoutingReport(dict(zip(self.mixture.names, some, strict=True)), names[best]) for some, best in rows]


class Flight(NamedTuple):
    """Rows in flight, and for each what comes next: the logits of a token to choose, or a token chosen and not read."""

    rows: list[Row]
    following: Tensor
    session: Session[Any]

    def select(self, places: Sequence[int]) -> "Flight":
        kept = torch.tensor(places, dtype=torch.long, device=self.following.device)
        return Flight([self.rows[place] for place in places], self.following[kept], self.session.select(places))

    @staticmethod
    def join(flights: Sequence["Flight"]) -> "Flight":
        """All rows, in the order of their slots: neighbours are computed in one piece."""
        if len(flights) == 1:
            return flights[0]
        session = Session.join([flight.session for flight in flights])
        rows = [row for flight in flights for row in flight.rows]
        joined = Flight(rows, torch.cat([flight.following for flight in flights]), session)
        order = sorted(range(len(rows)), key=lambda place: session.slots[place])
        return joined if order == [*range(len(rows))] else joined.select(order)


class Batch:
    """Rows in flight, in memory that is allocated once for so many `rows` of so many `tokens`.

    `admit` requests at any time, also while others run; each `step` writes one token of every row. A row that has
    finished, or is released, frees its slot for another. Rows may differ in all that a `Request` says, and each gets
    what it would get alone.
    """

    @torch.inference_mode()
    def __init__(self, engine: Engine, rows: int, tokens: int):
        self.engine, self.tokens = engine, tokens
        self.room = engine.mixture.room(rows, tokens)
        self.running: Flight | None = None
        self.fresh: list[Flight] = []  # admitted since the last step

    @property
    def rows(self) -> list[Row]:
        """All rows in flight."""
        return [row for flight in (self.running, *self.fresh) if flight for row in flight.rows]

    @property
    def free(self) -> int:
        """Rows that may still be admitted."""
        return len(self.room.spare)

    def admit(self, requests: Sequence[Request]) -> list[list[Row]]:
        """Read the prompts of these requests and decide who answers: the rows of each, which `step` then writes.

        Raises what `Engine.answer` raises, and MemoryLimitError where there are too few free slots, or too few tokens
        in one. Nothing has been admitted then.
        """
        return self.enter(self.engine.read(requests)) if requests else []

    def enter(self, asked: Asked) -> list[list[Row]]:
        """Admit requests that are encoded: those that the router decides about, and those that name an expert."""
        if asked.rows > self.free:
            hint = "wait until rows finish, or make a larger batch"
            expected = f"at most {self.free} more rows"
            raise MemoryLimitError("the batch is full", expected=expected, got=asked.rows, hint=hint)
        groups = [
            [place for place, expert in enumerate(asked.named) if (expert is None) == free] for free in (True, False)
        ]
        begun, found = list[Flight](), dict[int, list[Row]]()
        try:
            for places in filter(None, groups):
                own = asked.some(places)
                named = [expert for expert in own.named if expert is not None]
                flight, rows, decided = self.begin(own, self.engine.decision_of(named) if named else None)
                begun.append(flight)
                found |= zip(places, rows, strict=True)
                own.tell(decided)
        except BaseException:
            self.room.free([slot for flight in begun for slot in flight.session.slots])
            raise
        self.fresh += begun
        return [found[place] for place in range(len(asked.named))]

    def place(self, asked: Asked, decided: Routing) -> list[list[Row]]:
        """Admit requests that are decided already, and whose listeners know."""
        flight, rows, _ = self.begin(asked, decided)
        self.fresh.append(flight)
        return rows

    @torch.inference_mode()
    def begin(self, asked: Asked, decided: Routing | None) -> tuple[Flight, list[list[Row]], Routing]:
        """Read prompts into free slots: their rows, also by request, and the decision about each request."""
        if asked.tokens > self.tokens:
            what, hint = "the prompt and what is to follow exceed the batch's slots", "make a batch of longer rows"
            raise MemoryLimitError(what, expected=f"at most {self.tokens} tokens", got=asked.tokens, hint=hint)
        engine, taken = self.engine, self.room.spare.take(asked.rows)
        ends = [*accumulate(request.n for request in asked.requests)]
        slots = [taken[end - request.n : end] for request, end in zip(asked.requests, ends, strict=True)]
        try:
            logits, session = engine.mixture.prefill(asked.prompts, self.room, [some[0] for some in slots], decided)
            decision = session.routing
            logits[:, list(engine.tokenizer.ends)] = float("-inf")  # the end never comes first: there is an answer
            if len(taken) > len(slots):
                counts = torch.tensor([len(some) for some in slots], device=logits.device)
                logits, session = logits.repeat_interleave(counts, 0), session.repeat(slots)
        except BaseException:
            self.room.free(taken)
            raise
        prompts = zip(asked.prompts.ids.tolist(), asked.prompts.lengths.tolist(), strict=True)
        each = zip(asked.requests, prompts, asked.limits, engine.reports(decision), strict=True)
        rows = [
            [
                Row(engine.tokenizer, request, ids[:length], limit, generator, report)
                for generator in request.sampling.generators(request.n)
            ]
            for request, (ids, length), limit, report in each
        ]
        return Flight([row for some in rows for row in some], logits, session), rows, decision

    @torch.inference_mode()
    def step(self) -> list[Row]:
        """Write one token of every row; returns the rows that it finished, whose slots are free again."""
        flights = [*([self.read_on(self.running)] if self.running else []), *self.fresh]
        if not flights:
            return []
        rows, logits, session = Flight.join(flights)
        ids = choose(logits, [row.request.sampling for row in rows], [row.generator for row in rows])
        for row, id in zip(rows, ids.tolist(), strict=True):
            row.add(id)
        self.running, self.fresh = Flight(rows, ids.to(logits.device), session), []
        finished = [row for row in rows if row.finish]
        self.release(finished)
        return finished

    def read_on(self, flight: Flight) -> Flight:
        """Let the mixture read the tokens that were chosen: the logits after them."""
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
