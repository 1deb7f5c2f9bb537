"""Conversations, and the plain template for bases without a chat template.

Knows nothing about tokens.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

ROLES = ("system", "developer", "user", "assistant", "tool")


class Message(NamedTuple):
    """One message of a conversation; `role` is one of ROLES."""

    role: str
    content: str


Conversation = tuple[Message, ...]


NEXT_TURN = "\nUser:"
"""Begins the user's next turn behind an answer to a conversation that is written as `plain` writes it."""


class Exchange(NamedTuple):
    """A prompt and the response to it. `source`: file and line, for errors."""

    prompt: str | Conversation
    response: str
    source: str = ""


def plain(conversation: Conversation) -> str:
    """The prompt of a conversation for the assistant's response, which follows on a new line.

    A single user message is its own prompt. Otherwise each message is a line with its role and a colon, then its
    content, and the last line gives the assistant its turn:

        User:
        Two and two?
        Assistant:
        Four.
        User:
        And one more?
        Assistant:
    """
    return plain_at(conversation, [len(conversation)])[0]


def plain_at(conversation: Conversation, ends: Iterable[int]) -> list[str]:
    """The prompts of the first so many messages of a conversation, for each of `ends`; see `plain`."""
    lengths, whole = [0], ""
    for role, content in conversation:
        whole += f"{role.capitalize()}:\n{content}\n"
        lengths.append(len(whole))
    single = conversation[0].content if conversation and conversation[0].role == "user" else None
    return [single if end == 1 and single is not None else f"{whole[: lengths[end]]}Assistant:" for end in ends]


def talks(exchanges: Iterable[Exchange]) -> Iterator[list[Exchange]]:
    """Exchanges in groups, in each of which every exchange continues the conversation of the one before."""
    talk, said = list[Exchange](), Conversation()
    for one in exchanges:
        asked = () if isinstance(one.prompt, str) else one.prompt
        if talk and not (said and asked[: len(said)] == said and one.source == talk[-1].source):
            yield talk
            talk = []
        talk.append(one)
        said = asked and (*asked, Message("assistant", one.response))
    if talk:
        yield talk
