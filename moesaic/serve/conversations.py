"""Which expert a conversation has, and how sure that is: by its session, or by a fingerprint of the messages so far.

Knows nothing about routers. A bounded number of conversations is remembered, the latest ones.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from moesaic.tokenizer import Conversation, Message

REMEMBERED = 4096


@dataclass(frozen=True)
class Talk:
    """What a request says about its conversation: a session's name, and the messages, of which a text has none."""

    session: str | None = None
    messages: Conversation = ()

    @property
    def after_a_tool(self) -> bool:
        return bool(self.messages) and self.messages[-1].role == "tool"

    @property
    def turn(self) -> Conversation:
        """What the user has said since the latest answer."""
        return tuple(message for message in self.messages[self._answered :] if message.role == "user")

    @property
    def before(self) -> bytes | None:
        """The key under which the expert of the latest answer is held; None at the beginning of a conversation."""
        if self.session is not None:
            return key("session", [self.session])
        return fingerprint(self.messages[: self._answered]) if self._answered else None

    @property
    def _answered(self) -> int:
        """The number of messages up to the latest answer."""
        answers = (place for place, message in enumerate(self.messages, 1) if message.role == "assistant")
        return max(answers, default=0)

    def after(self, answers: Iterable[str]) -> list[bytes]:
        """The keys under which to hold the expert that gave these answers."""
        if self.session is not None:
            return [key("session", [self.session])]
        return [fingerprint((*self.messages, Message("assistant", answer))) for answer in answers if self.messages]


NO_TALK = Talk()


class Held(NamedTuple):
    """The expert of a conversation, and the probability of each, and of the base, that it has the subject."""

    expert: str
    shares: Mapping[str, float]


class Conversations:
    """The experts that conversations have."""

    def __init__(self, most: int = REMEMBERED):
        self.most, self._held = most, OrderedDict[bytes, Held]()

    def held(self, talk: Talk) -> Held | None:
        """What was held after the latest answer; None for a conversation that is not remembered."""
        found = talk.before
        if found is None or found not in self._held:
            return None
        self._held.move_to_end(found)
        return self._held[found]

    def hold(self, talk: Talk, answers: Iterable[str], held: Held) -> None:
        """Remember who gave these answers."""
        for one in talk.after(answers):
            self._held[one] = held
            self._held.move_to_end(one)
        while len(self._held) > self.most:
            self._held.popitem(last=False)

    def __len__(self) -> int:
        return len(self._held)


def fingerprint(messages: Conversation) -> bytes:
    """A key of messages: their roles and words. Clients trim spaces and line breaks, so these do not count."""
    return key("messages", [text for role, content in messages for text in (role, " ".join(content.split()))])


def key(kind: str, texts: list[str]) -> bytes:
    """16 bytes that differ for different texts."""
    data = b"".join(len(text.encode()).to_bytes(8, "big") + text.encode() for text in (kind, *texts))
    return hashlib.blake2b(data, digest_size=16).digest()
