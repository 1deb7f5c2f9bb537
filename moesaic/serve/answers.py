"""Answers as OpenAI's API gives them: bodies and the chunks of streams, with the `routing` object in them.

Knows nothing about engines or HTTP.
"""

import json
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from moesaic.generate.request import Generation
from moesaic.generate.row import UNKNOWN
from moesaic.generate.sample import Logprob
from moesaic.serve.choosing import Decision
from moesaic.serve.problems import Problem
from moesaic.serve.worker import Answer, Piece

Spell = Callable[[int], str]
"""The text of a token."""

DONE = "data: [DONE]\n\n"


@runtime_checkable
class Style(Protocol):
    """The form of the answers of one route."""

    prefix: str
    whole: str
    chunk: str

    def choice(self, made: Generation, logprobs: bool, spell: Spell) -> dict[str, Any]: ...
    def opening(self) -> dict[str, Any]: ...
    def piece(self, piece: Piece, logprobs: bool, offset: int, spell: Spell) -> dict[str, Any]: ...
    def closing(self) -> dict[str, Any]: ...


class ChatStyle:
    """Answers of `/v1/chat/completions`."""

    prefix, whole, chunk = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def choice(self, made: Generation, logprobs: bool, spell: Spell) -> dict[str, Any]:
        message = {"role": "assistant", "content": made.text, "refusal": None}
        return {"message": message, "logprobs": content(made.logprobs, spell) if logprobs else None}

    def opening(self) -> dict[str, Any]:
        return {"delta": {"role": "assistant", "content": ""}, "logprobs": None}

    def piece(self, piece: Piece, logprobs: bool, offset: int, spell: Spell) -> dict[str, Any]:
        return {"delta": {"content": piece.text}, "logprobs": content(piece.tokens, spell) if logprobs else None}

    def closing(self) -> dict[str, Any]:
        return {"delta": {}, "logprobs": None}


class TextStyle:
    """Answers of `/v1/completions`."""

    prefix, whole, chunk = "cmpl", "text_completion", "text_completion"

    def choice(self, made: Generation, logprobs: bool, spell: Spell) -> dict[str, Any]:
        return {"text": made.text, "logprobs": columns(made.logprobs, 0, spell) if logprobs else None}

    def opening(self) -> dict[str, Any]:
        return {"text": "", "logprobs": None}

    def piece(self, piece: Piece, logprobs: bool, offset: int, spell: Spell) -> dict[str, Any]:
        return {"text": piece.text, "logprobs": columns(piece.tokens, offset, spell) if logprobs else None}

    def closing(self) -> dict[str, Any]:
        return {"text": "", "logprobs": None}


@dataclass
class Writer:
    """Writes one answer. `usage`: count tokens in a last chunk. `logprobs`: report those of tokens."""

    style: Style
    model: str
    decision: Decision
    spell: Spell
    n: int = 1
    usage: bool = False
    logprobs: bool = False
    created: int = field(default_factory=lambda: int(time.time()))
    id: str = ""
    offsets: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.id = f"{self.style.prefix}-{secrets.token_hex(12)}"

    def frame(self, object: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        facts = {"id": self.id, "object": object, "created": self.created, "model": self.model}
        return {**facts, "system_fingerprint": f"fp_{self.decision.mixture}", "choices": choices, **more}

    def body(self, answer: Answer) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        choices = [
            {"index": index, **self.style.choice(made, self.logprobs, self.spell), "finish_reason": made.finish}
            for index, made in enumerate(answer.generations)
        ]
        return self.frame(self.style.whole, choices, usage=usage_of(answer), routing=self.decision.facts)

    def begin(self) -> Iterator[dict[str, Any]]:
        """The first chunks, one for each continuation; the very first has the decision."""
        for index in range(self.n):
            more = {} if index else {"routing": self.decision.facts}
            yield self.chunk([{"index": index, **self.style.opening(), "finish_reason": None}], **more)

    def piece(self, piece: Piece) -> dict[str, Any]:
        offset = self.offsets.get(piece.choice, 0)
        self.offsets[piece.choice] = offset + sum(len(self.spell(one.id)) for one in piece.tokens)
        own = self.style.piece(piece, self.logprobs, offset, self.spell)
        return self.chunk([{"index": piece.choice, **own, "finish_reason": None}])

    def end(self, answer: Answer) -> Iterator[dict[str, Any]]:
        """The last chunks: why each continuation ends, and the tokens if asked; the very last has the decision."""
        last = len(answer.generations) - 1
        for index, made in enumerate(answer.generations):
            more = {"routing": self.decision.facts} if index == last and not self.usage else {}
            yield self.chunk([{"index": index, **self.style.closing(), "finish_reason": made.finish}], **more)
        if self.usage:
            yield self.frame(self.style.chunk, [], usage=usage_of(answer), routing=self.decision.facts)

    def chunk(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return self.frame(self.style.chunk, choices, **({"usage": None} if self.usage else {}), **more)


def event(data: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {compact(data)}\n\n"


def compact(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def headers_of(decision: Decision) -> dict[str, str]:
    """The four headers of a decision, with the values of the body."""
    return {
        "x-moesaic-decision": decision.id or "",
        "x-moesaic-expert": decision.expert,
        "x-moesaic-confidence": compact(decision.confidence),
        "x-moesaic-reason": decision.reason,
    }


def usage_of(answer: Answer) -> dict[str, Any]:
    made = sum(len(one.ids) for one in answer.generations)
    counts = {"prompt_tokens": answer.read, "completion_tokens": made, "total_tokens": answer.read + made}
    return {**counts, "prompt_tokens_details": {"cached_tokens": answer.cached}}


def token(text: str, logprob: float) -> dict[str, Any]:
    """A token; `bytes` is null for one that is no whole character."""
    return {"token": text, "logprob": logprob, "bytes": None if UNKNOWN in text else [*text.encode()]}


def content(tokens: Sequence[Logprob], spell: Spell) -> dict[str, Any]:
    """The log-probabilities of a chat."""
    found = [
        {**token(spell(one.id), one.logprob), "top_logprobs": [token(spell(id), share) for id, share in one.top]}
        for one in tokens
    ]
    return {"content": found, "refusal": None}


def columns(tokens: Sequence[Logprob], offset: int, spell: Spell) -> dict[str, Any]:
    """The log-probabilities of a completion; `offset`: characters before these tokens."""
    texts = [spell(one.id) for one in tokens]
    starts = [offset + sum(map(len, texts[:index])) for index in range(len(texts))]
    tops = [{spell(id): share for id, share in one.top} for one in tokens]
    values = [one.logprob for one in tokens]
    return {"tokens": texts, "token_logprobs": values, "top_logprobs": tops, "text_offset": starts}


def ending_of(problem: Problem) -> Iterator[str]:
    """The end of a stream that fails."""
    yield event(problem.body)
    yield DONE
