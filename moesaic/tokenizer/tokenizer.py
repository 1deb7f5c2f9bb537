"""A tokenizer: text -> ids at the start of a sequence or within one, conversations -> ids, ids -> text.

Knows nothing about models or batches, nor how tokenizers are published.
"""

import json
from collections.abc import Callable, Iterable
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from moesaic.errors import DataError, WeightsError
from moesaic.files import disk
from moesaic.files.plain import encoded
from moesaic.tokenizer import templates
from moesaic.tokenizer.conversation import Conversation, Message, plain
from moesaic.tokenizer.published import JSON, MODEL, read_inner
from moesaic.tokenizer.special import Special, described, read_special
from moesaic.tokenizer.spellings import Spellings
from moesaic.tokenizer.templates import Template, read_template

if TYPE_CHECKING:
    import tokenizers

END = "<|end|>"
T = TypeVar("T")


class Tokenizer:
    """Text <-> ids. `template` writes conversations; where it is None, they are written plainly."""

    def __init__(self, inner: "tokenizers.Tokenizer", special: Special, template: Template | None = None):
        self.inner, self.special, self.template = inner, special, template
        inner.encode_special_tokens = True  # what a user types is text, even where it spells a special token

    @property
    def eos(self) -> int:
        """The token that is written at the end of a text."""
        return self.special.eos

    @property
    def ends(self) -> tuple[int, ...]:
        """The tokens that end a text where a model writes one of them."""
        return self.special.ends

    @property
    def start(self) -> tuple[int, ...]:
        """What the model expects before the first token of every sequence: in most a `bos` token, in ours nothing."""
        return self.special.start

    @cached_property
    def vocab_size(self) -> int:
        """How many ids there may be: one more than the largest."""
        return max(self.inner.get_vocab().values()) + 1

    @property
    def identity(self) -> list[Any]:
        """All that decides which ids a text is: plain data, for a fingerprint."""
        written = {"special": self._facts(), "template": self.template and self.template.source}
        own = [self.eos, self.inner.to_str()]
        return own if self.special == Special(self.eos) and not self.template else [*own, written]

    # text -> ids

    def encode(self, text: str) -> list[int]:
        """Ids of a text as if it stood alone, nothing added but the space that some tokenizers put before it."""
        return _encoded(self.inner, text)

    def begin(self, prompt: str | Conversation) -> list[int]:
        """Ids of what a sequence begins with: what the model expects before the first token, then the text.

        A conversation ends where the assistant is to answer. What it says is text: only the template's own special
        tokens become such. DataError where the template does not take it.
        """
        if isinstance(prompt, str):
            return [*self.special.start, *self.encode(prompt)]
        return self._written(self.template, prompt, reply=True) if self.template else self.begin(plain(prompt))

    def follow(self, text: str) -> list[int]:
        """Ids of a text that continues another: without the space that some tokenizers put before a text."""
        return _encoded(self._inside, text)

    def answer(self, prompt: str | Conversation, response: str) -> list[int]:
        """Ids of a response, which follow those of `begin(prompt)`, with the token that ends it.

        In a conversation it is written, and ended, as the template does. Otherwise it starts on a new line.
        """
        if isinstance(prompt, str) or not self.template:
            return [*self.follow("\n" + response), self.eos]
        before = self._written(self.template, prompt, reply=True)
        whole = self._written(self.template, (*prompt, Message("assistant", response)), reply=False)
        if whole[: len(before)] != before:
            what = "the base's chat template writes another prompt before an answer than it asks with"
            raise DataError(what, field="messages", hint="give rows of prompt and response")
        ids = whole[len(before) :]
        last = next((at for at in reversed(range(len(ids))) if ids[at] in self.ends), None)
        return [*ids, self.eos] if last is None else ids[: last + 1]

    def decode(self, ids: list[int]) -> str:
        """The text of ids, special tokens left out; ids that the tokenizer lacks are nothing."""
        return _caught(lambda: self.inner.decode(ids, skip_special_tokens=True))

    def _written(self, template: Template, conversation: Conversation, reply: bool) -> list[int]:
        """The ids of a conversation as its template writes it, cut where the tokenizer itself would cut it."""
        special, spellings = self._special
        ids: list[int] = []
        trim = False
        cut = template.pieces(conversation, reply, spellings)
        for (text, known), (after, then) in pairwise([*cut, ("", False)]):
            if known:
                ids.append(special[text][0])
                trim = special[text][1].rstrip
                continue
            text = text.lstrip() if trim else text
            text = text.rstrip() if then and special[after][1].lstrip else text
            ids += self.follow(text) if ids and self._first_only else self.encode(text)
            trim = False
        return ids

    @cached_property
    def _special(self) -> tuple[dict[str, tuple[int, "tokenizers.AddedToken"]], Spellings]:
        tokens = self.inner.get_added_tokens_decoder()
        special = {token.content: (id, token) for id, token in tokens.items() if token.special}
        return special, Spellings(special)

    @cached_property
    def _inside(self) -> "tokenizers.Tokenizer":
        """The tokenizer without the space that it puts before a text; itself where it puts none."""
        from tokenizers import Tokenizer as Inner

        found = json.loads(self.inner.to_str())
        if not _unprefixed(found):
            return self.inner
        inside = Inner.from_str(json.dumps(found))
        inside.encode_special_tokens = True
        return inside

    @cached_property
    def _first_only(self) -> bool:
        """Whether the space is put before the first piece of a text alone, not before each between special tokens."""
        cutting = self.inner.pre_tokenizer
        return cutting is not None and b'"prepend_scheme":"first"' in cutting.__getstate__()

    # folders

    def _facts(self) -> dict[str, Any]:
        """The special tokens as tokenizer_config.json has them."""
        begins = {"add_bos_token": bool(self.special.start)} if self.special.start in ((), (self.special.bos,)) else {}
        return {**dict(self.special.names), **begins, "eos_token_ids": list(self.ends)}

    def save(self, folder: Path) -> None:
        """Write a tokenizer.json, and beside it what that cannot say: special tokens, ends, the chat template."""
        disk.create(folder / JSON, f"{self.inner.to_str(pretty=True)}\n".encode())
        if self.special != Special(self.eos):
            facts = self._facts()
            ends = facts.pop("eos_token_ids")
            disk.create(folder / "tokenizer_config.json", encoded(facts, indent=2))
            disk.create(folder / "generation_config.json", encoded({"eos_token_id": ends}, indent=2))
        if self.template:
            disk.create(folder / templates.FILE, self.template.source.encode())

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
        return Tokenizer(inner, Special(0))  # special tokens come first

    @staticmethod
    def load(folder: Path, eos: int | None = None) -> "Tokenizer":
        """Read the tokenizer of a folder, in any form that it is published in; `eos`: see `read_special`."""
        config = described(folder)
        inner = read_inner(folder, config)
        bare = not (folder / JSON).is_file() and (folder / MODEL).is_file()
        special = read_special(folder, inner, config, eos, start=bare)
        return Tokenizer(inner, special, read_template(folder, config, special.names))


def _encoded(inner: "tokenizers.Tokenizer", text: str) -> list[int]:
    return _caught(lambda: inner.encode(text, add_special_tokens=False).ids)


def _caught(work: Callable[[], T]) -> T:
    """What the library answers; where it panics, which is no Exception, WeightsError."""
    try:
        return work()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError | TypeError):
            raise
        raise WeightsError("the tokenizer fails on a text", got=str(error)) from error


def _unprefixed(found: dict[str, Any]) -> bool:
    """Take the steps out of a tokenizer.json that put a space before a text; whether there were any."""
    steps, cuts = found.get("normalizer"), found.get("pre_tokenizer")
    normal = steps["normalizers"] if steps and steps["type"] == "Sequence" else [steps]
    kept = [step for step in normal if step and step["type"] != "Prepend"]
    changed = len(kept) < len([step for step in normal if step])
    if changed:
        found["normalizer"] = {"type": "Sequence", "normalizers": kept} if kept else None
    for cut in cuts["pretokenizers"] if cuts and cuts["type"] == "Sequence" else [cuts]:
        if cut and cut["type"] == "Metaspace" and cut.get("prepend_scheme", "always") != "never":
            cut["prepend_scheme"], changed = "never", True
        if cut and cut["type"] == "ByteLevel" and cut["add_prefix_space"]:
            cut["add_prefix_space"], changed = False, True
    return changed
