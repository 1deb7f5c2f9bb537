"""The shapes of rows: a conversation as a prompt with its response, or as messages, whatever its domain.

Knows nothing about the content of conversations.
"""

from collections.abc import Iterator
from random import Random
from typing import NamedTuple


class Exchange(NamedTuple):
    """A question and its answer."""

    ask: str
    answer: str


Groups = dict[str, list[list[Exchange]]]
"""Conversations by the template that they begin with. A group is never in two splits."""

PLAIN, LONGER = 0.6, 0.2  # shares of single exchanges: as plain text, and continued by the next of the group


def shaped(conversations: list[list[Exchange]], seed: str) -> Iterator[dict]:
    """Rows of all conversations of a group: every domain has plain prompts, messages and conversations."""
    rng = Random(seed)
    waiting: list[Exchange] = []
    for exchanges in conversations:
        if len(exchanges) == 1 and not waiting:
            chance = rng.random()
            if chance < PLAIN:
                yield {"prompt": exchanges[0].ask, "response": exchanges[0].answer}
                continue
            if chance < PLAIN + LONGER:
                waiting = exchanges
                continue
        yield messages([*waiting, *exchanges])
        waiting = []
    if waiting:
        yield messages(waiting)


def messages(exchanges: list[Exchange]) -> dict:
    turns = [(role, text) for exchange in exchanges for role, text in zip(("user", "assistant"), exchange, strict=True)]
    return {"messages": [{"role": role, "content": text} for role, text in turns]}
