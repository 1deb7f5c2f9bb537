"""One continuation as it grows: ids in, text out, and the part of the text that is final.

Knows nothing about models or the other rows of a batch.
"""

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch

from moesaic.generate.request import Finish, Generation, Request, RoutingReport
from moesaic.generate.sample import Logprob
from moesaic.tokenizer import Conversation

UNKNOWN = "\ufffd"  # a decoder's text for bytes that are not a character, or not yet


@runtime_checkable
class Tokenizing(Protocol):
    """Text <-> ids: `begin` encodes a prompt at the start of a sequence, any of `ends` ends the sequence."""

    @property
    def ends(self) -> tuple[int, ...]: ...
    def begin(self, prompt: str | Conversation, raw: bool = False) -> list[int]: ...
    def decode(self, ids: list[int]) -> str: ...


@dataclass(eq=False)
class Row:
    """A continuation of a request in flight, until `finish` is set."""

    tokenizer: Tokenizing
    request: Request
    given: list[int]  # the ids that are continued
    limit: int
    generator: torch.Generator
    routing: RoutingReport
    ids: list[int] = field(default_factory=list)
    logprobs: list[Logprob] = field(default_factory=list)
    text: str = ""
    shown: str = ""  # the part of `text` that later tokens cannot change
    finish: Finish | None = None
    whole: str = ""  # the text of ids[:read], which ends between two characters, as does that of ids[:context]
    context: int | None = None  # None: starts in `given`
    read: int = 0

    def add(self, id: int) -> None:
        """Append the next token, and update text and finish."""
        if id in self.tokenizer.ends:
            self.finish = "stop"
        else:
            self.ids.append(id)
            self.finish = "length" if len(self.ids) == self.limit else None
        stop, text = self.request.stop, self.decoded()
        text = (text if self.finish else text.rstrip(UNKNOWN)).removeprefix("\n")
        found = [at for word in stop if (at := text.find(word, len(self.shown))) >= 0]
        if found:
            text, self.finish = text[: min(found)], "stop"
        self.text = text
        self.shown = text if self.finish else text[: len(text) - pending(text, stop)]

    def decoded(self) -> str:
        """The text of all ids; decodes only the latest, after a few known ones, as decoders may trim the start."""
        before = self.given if self.context is None else []
        known = self.tokenizer.decode(before + self.ids[self.context : self.read])
        latest = self.tokenizer.decode(before + self.ids[self.context :])[len(known) :]
        text = self.whole + latest
        if latest and not latest.endswith(UNKNOWN):
            self.whole, self.context, self.read = text, self.read, len(self.ids)
        return text

    def generation(self) -> Generation:
        return Generation(self.text, self.ids, self.routing, self.finish or "length", self.logprobs)


def pending(text: str, stop: tuple[str, ...]) -> int:
    """The number of characters at the end of `text` that may begin a stop string."""
    return max((size for word in stop for size in range(1, len(word)) if text.endswith(word[:size])), default=0)
