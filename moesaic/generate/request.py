"""A request and its answer as values: a prompt with all settings of its continuation, and the continuation.

Knows nothing about models, batches or text <-> ids.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

from moesaic.errors import RecipeError, whole
from moesaic.generate.sample import GREEDY, Sampling
from moesaic.model.features import Prompts
from moesaic.routing import Routing
from moesaic.tokenizer import Conversation

BASE = "base"

Finish = Literal["stop", "length"]
Prompt = str | Conversation | list[int]
"""A text; a conversation for the assistant to continue; or the first ids of a sequence."""
Listener = Callable[[Sequence[Prompt], Prompts, Routing, bool], None]
"""Called with the prompts of a caller, the same as a batch, the decisions, and whether the caller decided."""


class Settings(TypedDict, total=False):
    """Settings of a continuation: see `Request`."""

    max_new_tokens: int | None
    sampling: Sampling
    stop: tuple[str, ...]
    expert: str | None


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt, and the settings of its continuations.

    `max_new_tokens`: None means 128, or half of a smaller context. `stop`: strings that end `Generation.text`.
    `expert`: the expert, or "base", that answers instead of the router's choice. `n`: the number of continuations; the
    prompt is read once for all. `listener`: called with the decision before any text is returned.
    Raises RecipeError for counts below 1 and empty stop strings.
    """

    prompt: Prompt
    max_new_tokens: int | None = None
    sampling: Sampling = GREEDY
    stop: tuple[str, ...] = ()
    expert: str | None = None
    n: int = 1
    listener: Listener | None = None

    def __post_init__(self) -> None:
        for field, count in {"max_new_tokens": self.max_new_tokens, "n": self.n}.items():
            if count is not None and whole(count, field) < 1:
                raise RecipeError("nothing to generate", field=field, expected=">= 1", got=count)
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        elif not isinstance(self.stop, list | tuple) or not all(isinstance(one, str) for one in self.stop):
            raise RecipeError("wrong type", field="stop", expected="a text, or a tuple of texts", got=repr(self.stop))
        if not isinstance(self.sampling, Sampling):
            got = f"{type(self.sampling).__name__} {self.sampling!r}"
            raise RecipeError("wrong type", field="sampling", expected="Sampling(temperature=..., ...)", got=got)
        if self.expert is not None and not isinstance(self.expert, str):
            raise RecipeError("wrong type", field="expert", expected="the name of an expert", got=repr(self.expert))
        if "" in self.stop:
            raise RecipeError("an empty stop string ends every text before it starts", field="stop")


@dataclass(frozen=True)
class RoutingReport:
    """A decision about a prompt: the weight of every expert, and the name of the heaviest; "base" if all are 0."""

    weights: dict[str, float]
    chosen: str

    @staticmethod
    def each(names: Sequence[str], routing: Routing) -> list["RoutingReport"]:
        known, rows = [*names, BASE], zip(routing.weights.tolist(), routing.best.tolist(), strict=True)
        return [RoutingReport(dict(zip(names, some, strict=True)), known[best]) for some, best in rows]  # base: -1


@dataclass(frozen=True)
class Generation:
    """One continuation.

    `text`: without the newline that starts a response, and without stop string; it may start with a space. `ids`: all
    tokens written, including a stop string's but not the end token. `finish`: "stop" at the end token or a stop string,
    "length" at `max_new_tokens`.
    """

    text: str
    ids: list[int]
    routing: RoutingReport
    finish: Finish
