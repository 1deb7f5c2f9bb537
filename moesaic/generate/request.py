"""A request and its answer as values: a prompt with all settings of its continuation, and what was written.

Knows nothing about models, batches or text <-> ids.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from moesaic.errors import RecipeError
from moesaic.generate.sample import GREEDY, Sampling
from moesaic.model.features import Prompts
from moesaic.routing import Routing
from moesaic.tokenizer import Conversation

BASE = "base"

Finish = Literal["stop", "length"]
Prompt = str | Conversation | list[int]
"""A text; a conversation that the assistant is to continue; or ids that a sequence begins with."""
Listener = Callable[[Sequence[Prompt], Prompts, Routing, bool], None]
"""Called with decisions: the prompts as they were given, what was read of them, what was decided, and whether a caller
decided in the router's place."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt, and how it is to be continued.

    `limit`: tokens to write at most; None: 128, or half of a context that is small. `stop`: strings that end the text,
    looked for in `Generation.text`. `expert`: who answers in the router's place, "base" included. `n`: continuations
    of the prompt, which is read once for all of them. `listener` is called with the decision before any text is given
    out. RecipeError where nothing is to be written.
    """

    prompt: Prompt
    limit: int | None = None
    sampling: Sampling = GREEDY
    stop: tuple[str, ...] = ()
    expert: str | None = None
    n: int = 1
    listener: Listener | None = None

    def __post_init__(self) -> None:
        for field, count in {"max_new_tokens": self.limit, "n": self.n}.items():
            if count is not None and count < 1:
                raise RecipeError("nothing to generate", field=field, expected=">= 1", got=count)
        if "" in self.stop:
            raise RecipeError("an empty stop string ends every text before it starts", field="stop")


@dataclass(frozen=True)
class RoutingReport:
    """The decision for a prompt: the weight of every expert, and the name of the heaviest ("base": none of them)."""

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
