"""A request and its answer as values: a prompt with all settings of its continuation, and the continuation.

Knows nothing about models, batches or text <-> ids.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypedDict

from moesaic.errors import RecipeError, whole
from moesaic.generate.sample import GREEDY, Logprob, Sampling
from moesaic.model.features import Prompts
from moesaic.routing import Routing
from moesaic.tokenizer import Conversation

BASE = "base"

Finish = Literal["stop", "length"]
Prompt = str | Conversation | list[int]
"""A text; a conversation for the assistant to continue; or the first ids of a sequence."""
Listener = Callable[[Sequence[Prompt], Prompts, Routing, bool, bool], None]
"""Called with the prompts of a caller, the same as a batch, the decisions, and whether the caller decided, and whether
texts were read as they are."""


class Settings(TypedDict, total=False):
    """Settings of a continuation: see `Request`."""

    max_new_tokens: int | None
    sampling: Sampling
    stop: tuple[str, ...]
    expert: str | None
    raw: bool


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt, and the settings of its continuations.

    `max_new_tokens`: None means 128, or half of a smaller context. `stop`: strings that end `Generation.text`.
    `expert`: the expert, or "base", that answers instead of the router's choice. `raw`: continue a text as it is, also
    where the base has a chat template. `n`: the number of continuations; the prompt is read once for all. `listener`:
    called with the decision before any text is returned. `logprobs`: the number of most probable tokens to report
    beside each written one; None reports none.
    Raises RecipeError for counts below 1 and empty stop strings.
    """

    prompt: Prompt
    max_new_tokens: int | None = None
    sampling: Sampling = GREEDY
    stop: tuple[str, ...] = ()
    expert: str | None = None
    raw: bool = False
    n: int = 1
    listener: Listener | None = None
    logprobs: int | None = None

    def __post_init__(self) -> None:
        for name, given in {"max_new_tokens": self.max_new_tokens, "n": self.n}.items():
            if given is not None:
                object.__setattr__(self, name, count := whole(given, name))
                if count < 1:
                    raise RecipeError("nothing to generate", field=name, expected=">= 1", got=count)
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
    """A decision about a prompt: the probability of every expert and of "base", the weights of the experts that answer,
    and the name of the heaviest; "base" if all weights are 0.
    """

    weights: dict[str, float]
    chosen: str
    probabilities: dict[str, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        likely = sorted(self.probabilities.items(), key=lambda item: -item[1])
        shares = ", ".join(f"{name} {share:.1%}" for name, share in likely)
        weights = {name: round(weight, 3) for name, weight in self.weights.items() if weight}
        return f"RoutingReport(chosen={self.chosen!r}, probabilities: {shares}, weights={weights})"

    @staticmethod
    def each(names: Sequence[str], routing: Routing) -> list["RoutingReport"]:
        known, decided = [*names, BASE], (routing.weights, routing.best, routing.probabilities)
        rows = zip(*(column.tolist() for column in decided), strict=True)
        return [
            RoutingReport(dict(zip(names, some, strict=True)), known[best], dict(zip(known, shares, strict=True)))
            for some, best, shares in rows  # best is -1 for the base
        ]


@dataclass(frozen=True, repr=False)
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
    logprobs: list[Logprob] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"Generation({self.text!r}, by {self.routing.chosen}, {self.finish} after {len(self.ids)} tokens)"
