"""Conversations, and the plain template: how one is written where the base has no chat template.

Knows nothing about tokens.
"""

from typing import NamedTuple

ROLES = ("system", "developer", "user", "assistant", "tool")


class Message(NamedTuple):
    """What one side said; `role` is one of ROLES."""

    role: str
    content: str


Conversation = tuple[Message, ...]


def plain(conversation: Conversation) -> str:
    """The prompt of a conversation that the assistant is to continue; the response follows it on a new line.

    What one user message asks is that message alone, as in a row of a prompt and a response. Otherwise each message
    is a line with its role and a colon, then its content, and a last line says that it is the assistant's turn:

        User:
        Two and two?
        Assistant:
        Four.
        User:
        And one more?
        Assistant:
    """
    if [message.role for message in conversation] == ["user"]:
        return conversation[0].content
    turns = [f"{message.role.capitalize()}:\n{message.content}" for message in conversation]
    return "\n".join([*turns, "Assistant:"])
