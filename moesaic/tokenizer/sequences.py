"""Sequences before their texts are encoded, so that the texts of many are encoded together.

Knows nothing about tokenizers or templates.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

CHUNK = 1 << 20  # characters that are encoded together


class Text(NamedTuple):
    """A text of a sequence; `inside`: it gets no space that a tokenizer puts before the first text."""

    text: str
    inside: bool = False


class Passage(NamedTuple):
    """A prompt and its response in the pieces of a sequence.

    The prompt is the pieces before `at` and then `head`, a text with which the next piece begins. The response is the
    rest of the pieces before `end`, and `closing`.
    """

    at: int
    head: Text | None
    end: int
    closing: tuple[int, ...] = ()


class Sequence(NamedTuple):
    """Ids and texts in their order, and the prompts and responses among them."""

    pieces: list[int | Text]
    passages: list[Passage]

    def texts(self) -> Iterator[Text]:
        """Every text to encode."""
        for piece in self.pieces:
            if not isinstance(piece, int):
                yield piece
        for one in self.passages:
            if one.head:
                yield one.head

    def ids(self, known: Mapping[Text, list[int]]) -> tuple[list[int], list[int]]:
        """All ids, and where each piece starts among them, the end included."""
        ids, starts = list[int](), [0]
        for piece in self.pieces:
            if isinstance(piece, int):
                ids.append(piece)
            else:
                ids += known[piece]
            starts.append(len(ids))
        return ids, starts

    def exchanges(
        self, known: Mapping[Text, list[int]], follow: Callable[[str], list[int]]
    ) -> Iterator[tuple[list[int], list[int]]]:
        """Ids of each prompt and of its response.

        A prompt has the ids that it has alone. Where it is one token with the beginning of the response, the rest of
        their text is encoded by itself, by `follow`.
        """
        ids, starts = self.ids(known)
        for at, head, end, closing in self.passages:
            start, begun = starts[at], known[head] if head else []
            cut = start + len(begun)
            if not head or (ids[start:cut] == begun and cut <= starts[at + 1]):
                yield ids[:cut], [*ids[cut : starts[end]], *closing]
            else:
                piece = self.pieces[at]
                assert not isinstance(piece, int)
                rest = follow(piece.text[len(head.text) :])
                yield ids[:start] + begun, [*rest, *ids[starts[at + 1] : starts[end]], *closing]


def chunks(sequences: Iterable[Sequence]) -> Iterator[list[Sequence]]:
    """Sequences in lists of about CHUNK characters."""
    some, size = list[Sequence](), 0
    for one in sequences:
        some.append(one)
        size += sum([len(text.text) for text in one.texts()])
        if size >= CHUNK:
            yield some
            some, size = [], 0
    if some:
        yield some
