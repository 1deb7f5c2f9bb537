"""Conversations as pieces: the special ids that a chat template writes, and the texts between them.

Knows nothing about how a text is encoded.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

from moesaic.errors import DataError
from moesaic.tokenizer.conversation import Conversation
from moesaic.tokenizer.outlines import NOTHING, Gap, Outline
from moesaic.tokenizer.spellings import Spellings
from moesaic.tokenizer.templates import Template, fits

if TYPE_CHECKING:
    import tokenizers

OUTLINES = 1024  # sequences of roles whose pieces are cached


@dataclass(frozen=True)
class Part:
    """A text between special tokens, without white space that a special token takes at its left or right end."""

    outline: Outline
    left: bool = False
    right: bool = False

    def starts(self, pieces: Sequence["int | Part"]) -> bool:
        """True if the first of `pieces` is a text that begins as this one, before white space is taken away."""
        first = pieces[0] if pieces else None
        return (
            first is not None
            and not isinstance(first, int)
            and first.left == self.left
            and self.outline.starts(first.outline)
        )

    def filled(self, conversation: Conversation) -> str:
        text = self.outline.filled(conversation)
        text = text.lstrip() if self.left else text
        return text.rstrip() if self.right else text


Pieces = tuple[int | Part, ...]


@dataclass(frozen=True)
class Cut:
    """The end of a prompt and of its answer in the pieces of both.

    The prompt is the first `at` pieces and then `head`, the beginning of the next piece, if any. The answer ends after
    `end` pieces, with an id that ends a text if it is `closed`.
    """

    at: int
    head: Part | None
    end: int
    closed: bool


@dataclass(frozen=True)
class Chat:
    """A conversation in pieces, and the cuts of some of its answers."""

    conversation: Conversation
    pieces: Pieces
    cuts: tuple[Cut, ...] = ()


class Chats:
    """Writes conversations with a chat template. `special`: id and token of each special token, by its text."""

    def __init__(
        self, template: Template, special: Mapping[str, tuple[int, "tokenizers.AddedToken"]], ends: Sequence[int]
    ):
        self.template, self.special, self.ends = template, special, ends
        self.spellings = Spellings(special)
        self.outlined = lru_cache(maxsize=OUTLINES)(self._outlined)
        self.shared = lru_cache(maxsize=OUTLINES)(self._shared)

    def prompt(self, conversation: Conversation) -> Chat:
        """A conversation that ends where the assistant's answer begins."""
        return Chat(conversation, self.pieces(conversation, reply=True))

    def answers(self, conversation: Conversation, places: Sequence[int]) -> list[Chat]:
        """The assistant's messages at these places, each as the answer to the messages before it.

        All are cuts of one chat, where the template writes a conversation as the beginning of a longer one. Otherwise
        each is the cut of a chat of its own. DataError where the template writes a prompt in another way when an answer
        follows.
        """
        shared = self.shared(roles_of(conversation), tuple(places)) if fits(conversation) else None
        if shared:
            return [Chat(conversation, *shared)]
        return [self.answer(conversation[: place + 1]) for place in places]

    def answer(self, conversation: Conversation) -> Chat:
        before = filled(self.pieces(conversation[:-1], reply=True), conversation)
        whole = filled(self.pieces(conversation, reply=False), conversation)
        return Chat(conversation, whole, (self.cut(before, whole),))

    def pieces(self, conversation: Conversation, reply: bool) -> Pieces:
        """The pieces of a conversation; DataError where the template refuses it, or it is too long."""
        outlined = self.outlined(roles_of(conversation), reply) if fits(conversation) else None
        if outlined is not None:
            return outlined
        found = self.template.pieces(conversation, reply, self.spellings)
        return self.joined((Outline((text,)), known) for text, known in found)

    def cut(self, before: Pieces, whole: Pieces) -> Cut:
        """The cut between a prompt and its answer; DataError where `whole` does not begin with the prompt."""
        head = before[-1] if before and not isinstance(before[-1], int) else None
        at = len(before) - (head is not None)
        if whole[:at] != before[:at] or (head and not head.starts(whole[at : at + 1])):
            raise changed()
        ends = [end for end, piece in enumerate(whole[at:], at + 1) if piece in self.ends]
        return Cut(at, head, ends[-1] if ends else len(whole), bool(ends))

    def _outlined(self, roles: tuple[str, ...], reply: bool) -> Pieces | None:
        """The pieces of every conversation of these roles; None where the template looks into contents or refuses."""
        outline = self.template.outline(roles, reply)
        return None if outline is None else self.joined(self.parts(outline))

    def _shared(self, roles: tuple[str, ...], places: tuple[int, ...]) -> tuple[Pieces, tuple[Cut, ...]] | None:
        """The pieces of every conversation of these roles, and the cuts of its answers; None where they have none."""
        pieces, cuts = self.outlined(roles, False), list[Cut]()
        for place in places:
            before, whole = self.outlined(roles[:place], True), self.outlined(roles[: place + 1], False)
            if pieces is None or before is None or whole is None:
                return None
            try:
                cut = self.cut(before, whole)
            except DataError:  # its own conversation will be refused
                return None
            if whole[: cut.end] != pieces[: cut.end] or not (cut.closed or whole == pieces):
                return None
            cuts.append(cut)
        return None if pieces is None else (pieces, tuple(cuts))

    def parts(self, outline: Outline) -> Iterator[tuple[Outline, bool]]:
        """The parts of an outline, True for special tokens."""
        texts, gaps = [""], list[Gap]()
        for gap, text in zip((None, *outline.gaps), outline.texts, strict=True):
            if gap:
                gaps.append(gap)
                texts.append("")
            for piece, known in self.spellings.cut(text):
                if known:
                    yield Outline(tuple(texts), tuple(gaps)), False
                    yield Outline((piece,)), True
                    texts, gaps = [""], []
                else:
                    texts[-1] += piece
        yield Outline(tuple(texts), tuple(gaps)), False

    def joined(self, parts: Iterable[tuple[Outline, bool]]) -> Pieces:
        """Ids of special tokens, and texts without the white space that these take, as the tokenizer itself cuts."""
        pieces, trim = list[int | Part](), False
        some = [(outline, known) for outline, known in parts if outline != NOTHING]
        for (outline, known), (after, then) in pairwise([*some, (NOTHING, False)]):
            if known:
                id, token = self.special[outline.texts[0]]
                pieces.append(id)
                trim = token.rstrip
            else:
                pieces.append(Part(outline, trim, then and self.special[after.texts[0]][1].lstrip))
                trim = False
        return tuple(pieces)


def roles_of(conversation: Conversation) -> tuple[str, ...]:
    return tuple([message.role for message in conversation])


def filled(pieces: Pieces, conversation: Conversation) -> Pieces:
    """The same pieces with the contents of one conversation in their gaps."""
    return tuple([one if isinstance(one, int) else Part(Outline((one.filled(conversation),))) for one in pieces])


def changed() -> DataError:
    what = "the base's chat template changes the prompt when an answer follows"
    return DataError(what, field="messages", hint="give rows of prompt and response")
