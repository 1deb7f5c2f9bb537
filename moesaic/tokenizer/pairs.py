"""One text, or two, -> the ids that a classifier reads.

Knows nothing about models or labels.
"""

from functools import cache
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from moesaic.tokenizer.spellings import Spellings
from moesaic.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    import tokenizers


WHOLE = 1 << 30  # a length that no text has


class Written(NamedTuple):
    """Ids, the text that each belongs to (all 0 for models without token types), and how many ids were cut off."""

    ids: list[int]
    types: list[int]
    lost: int


@runtime_checkable
class Writer(Protocol):
    """Turns one text, or two, into at most `length` ids."""

    def __call__(self, texts: tuple[str, ...], length: int) -> Written: ...
    def spelled(self, text: str) -> str | None:
        """A special token that a text spells, which is read as text all the same; None without any."""


class EncoderWriter:
    """Uses the tokenizer's own post-processor: `[CLS] a [SEP] b [SEP]` in a BERT, `<s>a</s></s>b</s>` in a RoBERTa.

    Truncates the longer text first. `typed`: whether the model has token types.
    """

    def __init__(self, inner: "tokenizers.Tokenizer", typed: bool):
        self.inner, self.typed = inner, typed
        self.cutting = cache(self._cutting)
        self.spelled = Spellings.special(inner).first

    def _cutting(self, length: int) -> "tokenizers.Tokenizer":
        from tokenizers import Tokenizer as Inner

        copy = Inner.from_str(self.inner.to_str())
        copy.encode_special_tokens = True  # a user's text is text, even where it spells a special token
        copy.enable_truncation(length, strategy="longest_first")
        return copy

    def __call__(self, texts: tuple[str, ...], length: int) -> Written:
        first, second = (*texts, None)[:2]
        found = self.cutting(length).encode(str(first), second)
        whole = len(self.cutting(WHOLE).encode(str(first), second).ids) if found.overflowing else len(found.ids)
        types = found.type_ids if self.typed else [0] * len(found.ids)
        return Written(found.ids, types, whole - len(found.ids))


class DecoderWriter:
    """Begins a sequence, then writes each text on its own line; truncates the end."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer, self.spelled = tokenizer, tokenizer.spelled

    def __call__(self, texts: tuple[str, ...], length: int) -> Written:
        ids = self.tokenizer.begin("\n".join(texts))
        return Written(ids[:length], [0] * min(length, len(ids)), max(0, len(ids) - length))
