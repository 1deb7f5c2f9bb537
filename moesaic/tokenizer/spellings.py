"""Finds the places where a text spells a token, in one pass for any number of tokens.

Knows nothing about ids, nor whether the spelling is intended.
"""

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tokenizers


class Spellings:
    """Finds tokens by their text, the longest at each position. Tokens of one character are never found."""

    def __init__(self, tokens: Iterable[str]):
        self.tokens = {token for token in tokens if len(token) > 1}
        self.sizes = sorted({len(token) for token in self.tokens}, reverse=True)
        starts = sorted({re.escape(token[:2]) for token in self.tokens})
        self.starts = re.compile(f"(?={'|'.join(starts)})" if starts else "(?!)")

    @staticmethod
    def special(inner: "tokenizers.Tokenizer") -> "Spellings":
        """The spellings of the special tokens of a tokenizer."""
        return Spellings(token.content for token in inner.get_added_tokens_decoder().values() if token.special)

    def first(self, text: str) -> str | None:
        """The first token that a text spells; None without any."""
        return next((token for _, token in self.places(text)), None)

    def places(self, text: str) -> Iterator[tuple[int, str]]:
        """Positions and the tokens that begin there, also where two overlap."""
        for match in self.starts.finditer(text):
            at = match.start()
            found = (text[at : at + size] for size in self.sizes)
            if token := next((some for some in found if some in self.tokens), None):
                yield at, token

    def cut(self, text: str) -> list[tuple[str, bool]]:
        """The pieces of a text, True for tokens; joined they are the text."""
        pieces, end = [], 0
        for at, token in self.places(text):
            if at >= end:
                pieces += [(text[end:at], False), (token, True)]
                end = at + len(token)
        return [(piece, known) for piece, known in [*pieces, (text[end:], False)] if piece]

    def broken(self, text: str, mark: str) -> str:
        """`text` with a mark inside everything that spells a token."""
        inside = [at + 1 for at, _ in self.places(text)]
        return mark.join(text[a:b] for a, b in zip([0, *inside], [*inside, len(text)], strict=True))
