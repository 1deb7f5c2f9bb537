"""Text <-> token ids: a byte-level BPE, trained here or read from a tokenizer.json.

Knows nothing about models or batches.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from moesaic.errors import WeightsError
from moesaic.files import disk

if TYPE_CHECKING:
    import tokenizers

END = "<|end|>"


class Tokenizer:
    """A tokenizer whose `eos` token ends every text."""

    def __init__(self, inner: "tokenizers.Tokenizer", eos: int):
        self.inner, self.eos = inner, eos
        inner.encode_special_tokens = True  # what a user types is text, even where it spells a special token

    @property
    def vocab_size(self) -> int:
        return self.inner.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone, nothing added."""
        return self.inner.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        return self.inner.decode(ids, skip_special_tokens=True)

    def save(self, folder: Path) -> None:
        disk.create(folder / "tokenizer.json", f"{self.inner.to_str(pretty=True)}\n".encode())

    @staticmethod
    def train(texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Byte-level BPE: every text can be encoded and comes back exactly."""
        from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
        from tokenizers import Tokenizer as Inner

        inner = Inner(models.BPE())
        # Digits stand alone, so that numbers are read the same wherever they occur.
        inner.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(r"\p{N}"), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
        inner.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        inner.train_from_iterator(texts, trainer)
        return Tokenizer(inner, 0)  # special tokens come first

    @staticmethod
    def load(folder: Path, eos: int) -> "Tokenizer":
        """Read a folder's tokenizer.json; which token ends a text is the model's business to say."""
        from tokenizers import Tokenizer as Inner

        path = folder / "tokenizer.json"
        if not path.is_file():
            raise WeightsError("no tokenizer here", path=path, hint="the base's folder must hold a tokenizer.json")
        try:
            inner = Inner.from_file(str(path))
        except BaseException as error:  # the Rust side panics with a BaseException on some malformed files
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            raise WeightsError("not a readable tokenizer", path=path, got=str(error)) from error
        if inner.id_to_token(eos) is None:
            raise WeightsError("the tokenizer lacks the model's end-of-text token", path=path, field="eos", got=eos)
        return Tokenizer(inner, eos)
