"""Forms in which a prompt can arrive: as text, as a message, behind a system prompt, in capitals, cut to its middle.

A router must not go by them, so it learns from prompts in several forms. Knows nothing about routers or tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TypeVar

from moesaic.data.rows import Example
from moesaic.files import digest
from moesaic.tokenizer.conversation import Conversation, Message

T = TypeVar("T")
Prompt = str | Conversation

SYSTEMS = (
    "You are a helpful assistant.",
    "You are a careful assistant. Answer briefly and to the point.",
    "Follow the user's instructions. If you do not know the answer, say so.",
    "Below is a request. Write a response that completes it.",
    "You are an assistant on a website. Be polite.",
    "Today is Tuesday. You talk to a user. Answer in the user's own language.",
)
SYSTEMS_JUDGED = (
    "You are an AI model, here to be useful and honest.",
    "Give a clear and complete reply to whatever the person writes.",
    "System notice: replies are limited to one page.",
)
TURNS = (
    (("user", "Hello!"), ("assistant", "Hello! How can I help you?")),
    (("user", "Are you ready?"), ("assistant", "Yes, please go ahead.")),
    (("user", "Thanks for the last answer."), ("assistant", "You are welcome. What is next?")),
    (("user", "Why is the sky blue?"), ("assistant", "The air scatters blue light more than red light.")),
    (("user", "hi"), ("assistant", "Hi."), ("user", "I have a question."), ("assistant", "Ask away.")),
    (("user", "What is the capital of Peru?"), ("assistant", "The capital of Peru is Lima.")),
)
TURNS_JUDGED = (
    (("user", "Good morning."), ("assistant", "Good morning! What can I do for you?")),
    (("user", "Which animal is the largest?"), ("assistant", "The blue whale is the largest animal.")),
    (("user", "That was quick."), ("assistant", "Glad to hear it."), ("user", "One more."), ("assistant", "Sure.")),
)
SHORTEST = 8  # words of a text that is cut to its middle


@dataclass(frozen=True)
class Draw:
    """Choices that depend on a key alone. For judging they come from other system prompts and turns than training."""

    key: str
    judged: bool = False

    def one(self, of: Sequence[T]) -> T:
        return of[int(sha256(self.key.encode()).hexdigest()[:12], 16) % len(of)]

    @property
    def systems(self) -> tuple[str, ...]:
        return SYSTEMS_JUDGED if self.judged else SYSTEMS

    @property
    def turns(self) -> tuple[tuple[tuple[str, str], ...], ...]:
        return TURNS_JUDGED if self.judged else TURNS


@dataclass(frozen=True)
class Form:
    """A way to write a prompt. `raw`: a text that no chat template may wrap."""

    write: Callable[[Prompt, Draw], Prompt]
    raw: bool = False

    def __call__(self, prompt: Prompt, draw: Draw) -> Prompt:
        return self.write(prompt, draw)


def spoken(prompt: Prompt) -> Conversation:
    return (Message("user", prompt),) if isinstance(prompt, str) else prompt


def words(prompt: Prompt, draw: Draw) -> str:
    return "\n".join(message.content for message in spoken(prompt))


def system(prompt: Prompt, draw: Draw) -> Conversation:
    said = tuple(message for message in spoken(prompt) if message.role != "system")
    return (Message("system", draw.one(draw.systems)), *said)


def turns(prompt: Prompt, draw: Draw) -> Conversation:
    said = spoken(prompt)
    first = next((at for at, message in enumerate(said) if message.role not in ("system", "developer")), len(said))
    return (*said[:first], *(Message(*turn) for turn in draw.one(draw.turns)), *said[first:])


def case(text: str, draw: Draw) -> str:
    return draw.one((str.lower, str.upper, str.title, str.lower))(text)


def spacing(text: str, draw: Draw) -> str:
    ways = (
        lambda some: f"  {some}",
        lambda some: f"{some}\n\n",
        lambda some: some.replace(" ", "  "),
        lambda some: f"\n{some} ",
        lambda some: some.replace(". ", ".\n"),
    )
    return draw.one(ways)(text)


def middle(text: str, draw: Draw) -> str:
    """The middle half of a text, between spaces; a text of few words stays whole."""
    parts = text.split(" ")
    return " ".join(parts[len(parts) // 4 : -(len(parts) // 4)]) if len(parts) >= SHORTEST else text


def each(change: Callable[[str, Draw], str]) -> Callable[[Prompt, Draw], Prompt]:
    """Change every text of a prompt; one that would come out blank stays as it is."""

    def changed(text: str, draw: Draw) -> str:
        new = change(text, draw)
        return new if new.strip() else text

    def write(prompt: Prompt, draw: Draw) -> Prompt:
        if isinstance(prompt, str):
            return changed(prompt, draw)
        return tuple(Message(message.role, changed(message.content, draw)) for message in prompt)

    return write


FORMS: dict[str, Form] = {
    "as_is": Form(lambda prompt, draw: prompt),
    "text": Form(words, raw=True),
    "message": Form(lambda prompt, draw: spoken(prompt)),
    "system": Form(system),
    "turns": Form(turns),
    "case": Form(each(case)),
    "spacing": Form(each(spacing)),
    "middle": Form(each(middle)),
}
"""Name -> form."""

CUT = "middle"
"""The form that keeps a part of the words; the others keep all of them."""

OTHERS = (("system", "turns"), ("text", "message", "case", "spacing", "middle"))
"""Other forms that routers learn a prompt in, one of each: with something before it, and in another spelling."""


def prompt_of(example: Example) -> Prompt:
    """The prompt of an example: its conversation, or its text."""
    return example.messages or example.prompt


def drawn(example: Example, others: Sequence[str]) -> str:
    """The name of one of these forms for a row, by its hash."""
    return Draw(f"{example.group} {example.source} {' '.join(others)}").one(others)


def identity() -> str:
    """Hash of the forms and their wordings."""
    return digest([[*FORMS], OTHERS, SYSTEMS, TURNS, SHORTEST])
