"""The engine: prompts -> continuations, from any routed mixture. Rows advance together and leave when they finish.

Knows nothing about experts, files, chat templates or HTTP; what it asks of a mixture is `Routed`, of text `Tokenizing`.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch

from moesaic.errors import DataError, RecipeError, nearest
from moesaic.generate.sample import GREEDY, Sampling, choose
from moesaic.model.features import Prompts
from moesaic.model.mixture import Routed
from moesaic.model.source import HELD, ExpertSource
from moesaic.routing import Routing
from moesaic.routing.controls import fixed
from moesaic.tokenizer import Conversation

BASE = "base"
NEW = 128
UNKNOWN = "\ufffd"  # how a decoder spells bytes that are no character, or none yet

Finish = Literal["stop", "length"]
Prompt = str | Conversation | list[int]
"""A text; a conversation that the assistant is to continue; or ids that a sequence begins with."""
Listener = Callable[[Sequence[Prompt], Prompts, Routing, bool], None]
"""Who is told of decisions: what was asked, what was read of it, what was decided, and whether by a caller, not by the
router."""


@runtime_checkable
class Tokenizing(Protocol):
    """Text <-> ids: `begin` is what a sequence starts with, any of `ends` ends it."""

    @property
    def ends(self) -> tuple[int, ...]: ...
    def begin(self, prompt: str | Conversation) -> list[int]: ...
    def decode(self, ids: list[int]) -> str: ...


@dataclass(frozen=True)
class RoutingReport:
    """Who answered a prompt: the weight of every expert, and the name of the heaviest ("base": none of them)."""

    weights: dict[str, float]
    chosen: str


@dataclass(frozen=True)
class Generation:
    """One continuation. `text` is without the newline that starts a response, and ends before a stop string.

    What was the space between prompt and continuation starts it. `ids`: all tokens written, those of the stop string
    included, the end token not.
    `finish`: "stop" at the end token or a stop string, "length" where the tokens asked for ran out.
    """

    text: str
    ids: list[int]
    routing: RoutingReport
    finish: Finish


@dataclass
class Row:
    """One continuation as it grows: ids in, text out, until `finish` says why it is over."""

    tokenizer: Tokenizing
    given: list[int]  # the ids that are continued
    stop: tuple[str, ...]
    limit: int
    generator: torch.Generator
    routing: RoutingReport
    ids: list[int] = field(default_factory=list)
    text: str = ""
    shown: str = ""  # the part of `text` that nothing to come can change
    finish: Finish | None = None
    whole: str = ""  # the text of ids[:read], which ends between two characters; so does that of ids[:context]
    context: int | None = None  # None: of what is given
    read: int = 0

    def add(self, id: int) -> None:
        """Take the next token."""
        if id in self.tokenizer.ends:
            self.finish = "stop"
        else:
            self.ids.append(id)
            self.finish = "length" if len(self.ids) == self.limit else None
        text = self.decoded()
        text = (text if self.finish else text.rstrip(UNKNOWN)).removeprefix("\n")
        found = [at for word in self.stop if (at := text.find(word, len(self.shown))) >= 0]
        if found:
            text, self.finish = text[: min(found)], "stop"
        self.text = text
        self.shown = text if self.finish else text[: len(text) - begun(text, self.stop)]

    def decoded(self) -> str:
        """The text of all ids, decoding only the latest: after a few that are known, as a decoder may trim a start."""
        before = self.given if self.context is None else []
        known = self.tokenizer.decode(before + self.ids[self.context : self.read])
        latest = self.tokenizer.decode(before + self.ids[self.context :])[len(known) :]
        text = self.whole + latest
        if latest and not latest.endswith(UNKNOWN):
            self.whole, self.context, self.read = text, self.read, len(self.ids)
        return text

    def generation(self) -> Generation:
        return Generation(self.text, self.ids, self.routing, self.finish or "length")


class Part(NamedTuple):
    """Rows that are answered together, by their places, and the experts that these ask."""

    experts: tuple[int, ...]
    rows: list[int]


def parts(routing: Routing | None, rows: int, most: int) -> list[Part]:
    """All rows, those of the same experts together, at most so many at once; without a routing, in their order."""
    chosen = [()] * rows if routing is None else [tuple(row.nonzero().flatten().tolist()) for row in routing.weights]
    places: dict[tuple[int, ...], list[int]] = {}
    for place, experts in enumerate(chosen):
        places.setdefault(experts, []).append(place)
    return [
        Part(experts, own[start : start + most])
        for experts, own in places.items()
        for start in range(0, len(own), most)
    ]


def some(prompts: Prompts, rows: list[int]) -> Prompts:
    """Some of the prompts, as wide as they were beside the others: what they get does not depend on who is left out."""
    at = torch.tensor(rows, device=prompts.ids.device)
    return Prompts(prompts.ids[at], prompts.lengths[at], [prompts.texts[place] for place in rows])


def begun(text: str, stop: tuple[str, ...]) -> int:
    """How many characters at the end of `text` may turn out to begin a stop string."""
    return max((size for word in stop for size in range(1, len(word)) if text.endswith(word[:size])), default=0)


@dataclass(frozen=True)
class Engine:
    """Generates with a mixture; every method may be called any number of times, nothing is kept in between.

    `device`: where the mixture stands; None: torch's default device. `listener` is told of every decision that a text
    is generated by, before any of that text is given out. `source`: the mixture's own; where its experts do not all fit
    into memory, rows of the same experts are answered to their end before the next are: each is fetched once.
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
        """n continuations of every prompt, in one batch where there is memory; routed once, from the prompt, unless
        `expert`.

        A continuation has at least one token: the end of text never comes first.
        `stop`: strings that end a text, looked for in `Generation.text`. `expert`: who answers, "base" included.
        Raises RecipeError for an empty prompt, one that does not fit the context, and an unknown expert.
        """
        new = self.asked(max_new_tokens)
        check(new, n, stop)
        if not prompts:
            return []
        forced, batch = self.forced(expert, len(prompts)), self.read(prompts, new)
        tokens, made = batch.ids.shape[1] + new, dict[int, list[Generation]]()
        most = max(1, self.source.rows(tokens) // n)
        with self.source.turn(min(most, len(prompts)) * n, tokens):
            decided, told = forced, False
            if self.source.sorts:
                decided, told = self.routed(batch, most) if forced is None else forced, True
                if self.listener:
                    self.listener(prompts, batch, decided, forced is not None)
            left = parts(decided if self.source.sorts else None, len(prompts), most)
            following = self.cheapest(left)
            while part := following:
                with self.source.using(part.experts):
                    if following := self.cheapest(left):
                        self.source.expect(following.experts)
                    asked = [] if told else [prompts[place] for place in part.rows]
                    own = None if decided is None else decided[torch.tensor(part.rows, device=self.device)]
                    *_, rows = self.steps(asked, some(batch, part.rows), own, new, sampling, n, stop)
                for index, place in enumerate(part.rows):
                    made[place] = [row.generation() for row in rows[index * n : (index + 1) * n]]
        return [made[place] for place in range(len(prompts))]

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
        new = self.asked(max_new_tokens)
        check(new, 1, stop)
        forced, batch = self.forced(expert, 1), self.read([prompt], new)
        tokens = batch.ids.shape[1] + new
        self.source.rows(tokens)
        return pieces(self.alone(self.steps([prompt], batch, forced, new, sampling, 1, stop), tokens))

    def alone(self, steps: Iterator[list[Row]], tokens: int) -> Iterator[list[Row]]:
        """The steps of one row, while no other answer is written."""
        with self.source.turn(1, tokens):
            yield from steps

    def asked(self, new: int | None) -> int:
        """How many tokens to write: those asked for; else NEW, or half of a context that is small."""
        return min(NEW, self.mixture.context // 2) if new is None else new

    def route(self, prompts: Sequence[Prompt]) -> list[RoutingReport]:
        """Who would answer each prompt."""
        if not prompts:
            return []
        batch = self.read(prompts, 0)
        most = self.source.rows(batch.ids.shape[1])
        with self.source.turn(min(most, len(prompts)), batch.ids.shape[1]):
            return self.reports(self.routed(batch, most))

    @torch.inference_mode()
    def routed(self, prompts: Prompts, most: int) -> Routing:
        """The router's decisions, made for at most so many prompts at once."""
        every = range(len(prompts.texts))
        pieces = [some(prompts, list(every[start : start + most])) for start in every[::most]]
        return Routing.cat([self.mixture.route(piece) for piece in pieces])

    @torch.inference_mode()
    def steps(
        self,
        asked: Sequence[Prompt],
        prompts: Prompts,
        forced: Routing | None,
        max_new_tokens: int,
        sampling: Sampling,
        n: int,
        stop: tuple[str, ...],
    ) -> Iterator[list[Row]]:
        """All rows, n side by side for each prompt, after every token; a row that has finished costs nothing more.

        `asked`: what the listener is told; empty where it has been told.
        """
        logits, session = self.mixture.prefill(prompts, max_new_tokens, forced)
        reports = self.reports(session.routing)
        if self.listener and asked:
            self.listener(asked, prompts, session.routing, forced is not None)
        logits[:, list(self.tokenizer.ends)] = float("-inf")  # whoever asks gets an answer: the end never comes first
        if n > 1:
            logits, session = logits.repeat_interleave(n, 0), session.repeat(n)
        rows = [
            Row(self.tokenizer, given[:length], stop, max_new_tokens, generator, report)
            for given, length, report in zip(prompts.ids.tolist(), prompts.lengths.tolist(), reports, strict=True)
            for generator in sampling.generators(n)
        ]
        going = rows
        while True:
            ids = choose(logits, sampling, [row.generator for row in going])
            for row, id in zip(going, ids.tolist(), strict=True):
                row.add(id)
            yield rows
            stay = [place for place, row in enumerate(going) if not row.finish]
            if not stay:
                return
            if len(stay) < len(going):
                going, ids = [going[place] for place in stay], ids[stay]
                session = session.select(torch.tensor(stay, device=logits.device))
            logits = self.mixture.decode(ids.to(logits.device), session)

    def read(self, prompts: Sequence[Prompt], new: int) -> Prompts:
        """The prompts as one batch of tokens, if each has any and leaves room for `new` more."""
        for index, text in enumerate(prompts):
            if isinstance(text, str) and any("\ud800" <= character <= "\udfff" for character in text):
                raise RecipeError("the prompt is not Unicode text", field=f"prompts[{index}]", hint="send it as UTF-8")
        rows = [one if isinstance(one, list) else self.begin(one, index) for index, one in enumerate(prompts)]
        both = zip(prompts, rows, strict=True)
        texts = [one if isinstance(one, str) else self.tokenizer.decode(ids) for one, ids in both]
        context = self.mixture.context
        for index, (one, ids) in enumerate(zip(prompts, rows, strict=True)):
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
        return Prompts.pad(rows, texts, self.device)

    def begin(self, prompt: str | Conversation, index: int) -> list[int]:
        """The ids of a prompt; a conversation that the base's template refuses is named by its `index`."""
        try:
            return self.tokenizer.begin(prompt)
        except DataError as error:
            error.field = f"prompts[{index}].{error.field}"
            raise

    def forced(self, expert: str | None, rows: int) -> Routing | None:
        """The decision that a caller makes in the router's place."""
        if expert is None:
            return None
        known = [*self.mixture.names, BASE]
        if expert not in known:
            hint = nearest(expert, known)
            raise RecipeError("no such expert", field="expert", expected=" or ".join(known), got=expert, hint=hint)
        index = -1 if expert == BASE else known.index(expert)
        weights = fixed(index, rows, len(self.mixture.names)).to(self.device)
        return Routing(weights, weights.log())

    def reports(self, routing: Routing) -> list[RoutingReport]:
        names = [*self.mixture.names, BASE]  # an abstaining row's best is -1
        rows = zip(routing.weights.tolist(), routing.best.tolist(), strict=True)
        return [RoutingReport(dict(zip(self.mixture.names, some, strict=True)), names[best]) for some, best in rows]


def check(max_new_tokens: int, n: int, stop: tuple[str, ...]) -> None:
    """Refuse to write nothing."""
    for name, count in {"max_new_tokens": max_new_tokens, "n": n}.items():
        if count < 1:
            raise RecipeError("nothing to generate", field=name, expected=">= 1", got=count)
    if "" in stop:
        raise RecipeError("an empty stop string ends every text before it starts", field="stop")


def pieces(steps: Iterator[list[Row]]) -> Generator[str, None, Generation]:
    """What each step adds to the certain text of a single row."""
    sent = 0
    for (row,) in steps:
        if len(row.shown) > sent:
            yield row.shown[sent:]
            sent = len(row.shown)
    return row.generation()
