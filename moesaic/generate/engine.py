"""The engine: prompts -> continuations, from any routed mixture. Rows advance together and leave when they finish.

Knows nothing about experts, files, chat templates or HTTP; what it asks of a mixture is `Routed`, of text `Tokenizing`.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch

from moesaic.errors import RecipeError, nearest
from moesaic.generate.sample import GREEDY, Sampling, choose
from moesaic.model.features import Prompts
from moesaic.model.mixture import Routed
from moesaic.routing import Routing
from moesaic.routing.controls import fixed

BASE = "base"
NEW = 128
UNKNOWN = "\ufffd"  # how a decoder spells bytes that are no character, or none yet

Finish = Literal["stop", "length"]


@runtime_checkable
class Tokenizing(Protocol):
    """Text <-> ids; the token `eos` ends a text."""

    @property
    def eos(self) -> int: ...
    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: list[int]) -> str: ...


@dataclass(frozen=True)
class RoutingReport:
    """Who answered a prompt: the weight of every expert, and the name of the heaviest ("base": none of them)."""

    weights: dict[str, float]
    chosen: str


@dataclass(frozen=True)
class Generation:
    """One continuation. `text` is without the newline that starts a response, and ends before a stop string.

    `ids`: all tokens written, those of the stop string included, the end token not.
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
    stop: tuple[str, ...]
    limit: int
    generator: torch.Generator
    routing: RoutingReport
    ids: list[int] = field(default_factory=list)
    text: str = ""
    shown: str = ""  # the part of `text` that nothing to come can change
    finish: Finish | None = None
    whole: str = ""  # the text of ids[:read], which ends between two characters; so does that of ids[:context]
    context: int = 0
    read: int = 0

    def add(self, id: int) -> None:
        """Take the next token."""
        if id == self.tokenizer.eos:
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
        known = self.tokenizer.decode(self.ids[self.context : self.read])
        latest = self.tokenizer.decode(self.ids[self.context :])[len(known) :]
        text = self.whole + latest
        if latest and not latest.endswith(UNKNOWN):
            self.whole, self.context, self.read = text, self.read, len(self.ids)
        return text

    def generation(self) -> Generation:
        return Generation(self.text, self.ids, self.routing, self.finish or "length")


def begun(text: str, stop: tuple[str, ...]) -> int:
    """How many characters at the end of `text` may turn out to begin a stop string."""
    return max((size for word in stop for size in range(1, len(word)) if text.endswith(word[:size])), default=0)


@dataclass(frozen=True)
class Engine:
    """Generates with a mixture; every method may be called any number of times, nothing is kept in between.

    `device`: where the mixture stands; None: torch's default device.
    """

    mixture: Routed
    tokenizer: Tokenizing
    device: torch.device | None = None

    def generate(
        self,
        prompts: list[str],
        *,
        max_new_tokens: int | None = None,
        sampling: Sampling = GREEDY,
        n: int = 1,
        stop: tuple[str, ...] = (),
        expert: str | None = None,
    ) -> list[list[Generation]]:
        """n continuations of every prompt, all prompts in one batch; routed once, from the prompt, unless `expert`.

        A continuation has at least one token: the end of text never comes first.
        `stop`: strings that end a text, looked for in `Generation.text`. `expert`: who answers, "base" included.
        Raises RecipeError for an empty prompt, one that does not fit the context, and an unknown expert.
        """
        new = self.asked(max_new_tokens)
        check(new, n, stop)
        if not prompts:
            return []
        forced, batch = self.forced(expert, len(prompts)), self.read(prompts, new)
        *_, rows = self.steps(batch, forced, new, sampling, n, stop)
        return [[row.generation() for row in rows[start : start + n]] for start in range(0, len(rows), n)]

    def stream(
        self,
        prompt: str,
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
        return pieces(self.steps(batch, forced, new, sampling, 1, stop))

    def asked(self, new: int | None) -> int:
        """How many tokens to write: those asked for; else NEW, or half of a context that is small."""
        return min(NEW, self.mixture.context // 2) if new is None else new

    @torch.inference_mode()
    def route(self, texts: list[str]) -> list[RoutingReport]:
        """Who would answer each text."""
        return self.reports(self.mixture.route(self.read(texts, 0))) if texts else []

    @torch.inference_mode()
    def steps(
        self,
        prompts: Prompts,
        forced: Routing | None,
        max_new_tokens: int,
        sampling: Sampling,
        n: int,
        stop: tuple[str, ...],
    ) -> Iterator[list[Row]]:
        """All rows, n side by side for each prompt, after every token; a row that has finished costs nothing more."""
        logits, session = self.mixture.prefill(prompts, max_new_tokens, forced)
        reports = self.reports(session.routing)
        logits[:, self.tokenizer.eos] = float("-inf")  # whoever asks gets an answer: the end never comes first
        if n > 1:
            logits, session = logits.repeat_interleave(n, 0), session.repeat(n)
        rows = [
            Row(self.tokenizer, stop, max_new_tokens, generator, report)
            for report in reports
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

    def read(self, texts: list[str], new: int) -> Prompts:
        """The texts as one batch of tokens, if each has any and leaves room for `new` more."""
        for index, text in enumerate(texts):
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise RecipeError("the prompt is not Unicode text", field=f"prompts[{index}]", hint="send it as UTF-8")
        rows, context = [self.tokenizer.encode(text) for text in texts], self.mixture.context
        for index, ids in enumerate(rows):
            if not ids:
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
