"""The engine: requests -> continuations, from any routed mixture. Rows advance together; each leaves when it finishes.

Knows nothing about experts, files, chat templates or HTTP: it needs a mixture that is `Routed`, and a `Tokenizing`.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple, Unpack, cast

import torch

from moesaic.errors import DataError, NonFiniteError, RecipeError, nearest
from moesaic.generate.flight import Flight
from moesaic.generate.request import BASE, Generation, Listener, Prompt, Request, RoutingReport, Settings
from moesaic.generate.row import Row, Tokenizing
from moesaic.model.features import Prompts
from moesaic.model.mixture import Begun, Chunked, Room, Routed
from moesaic.model.source import HELD, ExpertSource
from moesaic.ops.host import to_device, to_host
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
        lengths = to_host(self.prompts.lengths)
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

    def begun(self, tokenizer: Tokenizing, decisions: Sequence[RoutingReport]) -> list[list[Row]]:
        """The rows of each request, still without tokens."""
        lengths = to_host(self.prompts.lengths)
        given = [ids[:length] for ids, length in zip(to_host(self.prompts.ids), lengths, strict=True)]
        return [
            [Row(tokenizer, request, ids, limit, one, decision) for one in request.sampling.generators(request.n)]
            for request, ids, limit, decision in zip(self.requests, given, self.limits, decisions, strict=True)
        ]

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
    known = [[]] * count if routing is None else to_host(routing.weights)
    chosen = [tuple(expert for expert, weight in enumerate(row) if weight) for row in known]
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
                    own, at = encoded.some(group.places), torch.tensor(group.places, device=self.device)
                    *_, rows = self.written(own, None if decided is None else decided[at])
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
        sent = 0
        with self.source.turn(1, encoded.tokens):
            for ((row,),) in self.written(encoded):
                if len(row.shown) > sent:
                    yield row.shown[sent:]
                    sent = len(row.shown)
        return row.generation()

    def written(self, encoded: Encoded, decided: Routing | None = None) -> Iterator[list[list[Row]]]:
        """Answer requests as one batch; yield the rows of each request after every token.

        `decided`: the decision about each, whose listener has been notified. Otherwise the router decides, or the
        request's own expert.
        """
        with torch.inference_mode():
            room = self.mixture.room(encoded.rows, encoded.tokens)
        rows, first = self.admit(encoded, room, decided)
        flight: Flight | None = first
        while flight:
            flight, lost = flight.write(self.tokenizer.ends)
            if lost:
                places = ", ".join(str(flight.rows.index(row)) for row in lost)
                raise NonFiniteError("the model's logits are not finite", field=f"row {places}")
            yield rows
            flight = self.read_on(flight, room)

    @torch.inference_mode()
    def admit(self, encoded: Encoded, room: Room, decided: Routing | None) -> tuple[list[list[Row]], Flight]:
        """Read prompts: the rows of each request, and all of them with the logits of their first tokens."""
        if decided is not None:
            rows, flight, _ = self.prefill(encoded, room, decided)
            return rows, flight
        free = [place for place, expert in enumerate(encoded.named) if expert is None]
        others = [place for place, expert in enumerate(encoded.named) if expert is not None]
        flights, found = list[Flight](), dict[int, list[Row]]()
        for places in filter(None, (free, others)):
            own = encoded.some(places)
            named = [expert for expert in own.named if expert is not None]
            rows, flight, decision = self.prefill(own, room, self.decision_of(named) if named else None)
            own.notify(decision)
            flights.append(flight)
            found |= zip(places, rows, strict=True)
        return [found[place] for place in range(len(encoded.named))], Flight.join(flights)

    def prefill(self, encoded: Encoded, room: Room, decided: Routing | None) -> tuple[list[list[Row]], Flight, Routing]:
        """Read prompts into slots of their own: their rows by request, and all in flight; and the decisions."""
        taken = room.spare.take(encoded.rows)
        ends = accumulate(request.n for request in encoded.requests)
        slots = [taken[end - request.n : end] for request, end in zip(encoded.requests, ends, strict=True)]
        logits, session = self.mixture.prefill(encoded.prompts, room, [some[0] for some in slots], decided)
        decision = session.routing
        if len(taken) > len(slots):
            each = to_device([row for row, some in enumerate(slots) for _ in some], logits.device)
            logits, session = logits.index_select(0, each), session.repeat(slots)
        rows = encoded.begun(self.tokenizer, RoutingReport.each(self.mixture.names, decision))
        return rows, Flight([row for some in rows for row in some], logits, session), decision

    @torch.inference_mode()
    def read_on(self, flight: Flight, room: Room) -> Flight | None:
        """Read the latest token of the rows that go on; the slots of the others are free."""
        both = zip(flight.rows, flight.session.slots, strict=True)
        room.free([slot for row, slot in both if row.finish])
        left = flight.without([row for row in flight.rows if row.finish])
        return left.read(self.mixture) if left else None

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

    @torch.inference_mode()
    def begun(self, encoded: Encoded) -> tuple[Routing, Begun | None]:
        """The router's decision about one request, and what its answer can go on from."""
        return cast(Chunked, self.mixture).route_and_begin(encoded.prompts)

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
