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
    """Text <-> ids. `template` writes conversations; without one, `plain` does."""

    def __init__(self, inner: "tokenizers.Tokenizer", special: Special, template: Template | None = None):
        self.inner, self.special, self.template = inner, special, template
        inner.encode_special_tokens = True  # a user's text is text, even where it spells a special token

    @property
    def eos(self) -> int:
        """The id that ends a written text."""
        return self.special.eos

    @property
    def ends(self) -> tuple[int, ...]:
        """The ids that end a generated text."""
        return self.special.ends

    @property
    def start(self) -> tuple[int, ...]:
        """The ids before the first token of every sequence: often a `bos` token, none for tokenizers trained here."""
        return self.special.start

    @cached_property
    def vocab_size(self) -> int:
        return max(self.inner.get_vocab().values()) + 1

    @property
    def identity(self) -> list[Any]:
        """All that decides the ids of a text, as plain data for a fingerprint."""
        written = {"special": self._facts(), "template": self.template and self.template.source}
        own = [self.eos, self.inner.to_str()]
        return own if self.special == Special(self.eos) and not self.template else [*own, written]

    # text -> ids

    def encode(self, text: str) -> list[int]:
        """Ids of a text alone; nothing is added but the space that some tokenizers put first."""
        return _encoded(self.inner, text)

    def begin(self, prompt: str | Conversation, raw: bool = False) -> list[int]:
        """Ids of the beginning of a sequence: a conversation in the chat template, or `start` and then a text.

        With a template, a text is one user message, unless it is `raw`. A conversation ends where the assistant's
        answer begins. Its messages are text: only the template itself writes special tokens. DataError where the
        template refuses the conversation.
        """
        prompt = self._asked(prompt, raw)
        if isinstance(prompt, str):
            return [*self.special.start, *self.encode(prompt)]
        assert self.template
        return self._written(self.template, prompt, reply=True)

    def follow(self, text: str) -> list[int]:
        """Ids of a text that continues another, without the space that some tokenizers put first."""
        return _encoded(self._inside, text)

    def answer(self, prompt: str | Conversation, response: str, raw: bool = False) -> list[int]:
        """Ids of a response, to follow those of `begin(prompt, raw)`, with the token that ends it.

        In a conversation the template writes and ends it. Otherwise it starts on a new line.
        """
        prompt = self._asked(prompt, raw)
        if isinstance(prompt, str):
            return [*self.follow("\n" + response), self.eos]
        assert self.template
        before = self._written(self.template, prompt, reply=True)
        whole = self._written(self.template, (*prompt, Message("assistant", response)), reply=False)
        if whole[: len(before)] != before:
            what = "the base's chat template changes the prompt when an answer follows"
            raise DataError(what, field="messages", hint="give rows of prompt and response")
        ids = whole[len(before) :]
        last = next((at for at in reversed(range(len(ids))) if ids[at] in self.ends), None)
        return [*ids, self.eos] if last is None else ids[: last + 1]

    def decode(self, ids: list[int]) -> str:
        """The text of ids, without special tokens and unknown ids."""
        return _caught(lambda: self.inner.decode(ids, skip_special_tokens=True))

    def spelled(self, text: str) -> str | None:
        """A special token that a text spells, which is read as text all the same; None without any."""
        tokens = self.inner.get_added_tokens_decoder().values()
        return next((token.content for token in tokens if token.special and token.content in text), None)

    def _asked(self, prompt: str | Conversation, raw: bool) -> str | Conversation:
        """The form in which a model reads a prompt: a conversation for the template, or a text."""
        if isinstance(prompt, str):
            return prompt if raw or not self.template else (Message("user", prompt),)
        return prompt if self.template else plain(prompt)

    def _written(self, template: Template, conversation: Conversation, reply: bool) -> list[int]:
        """The ids of a conversation in its template, split at special tokens as the tokenizer itself would split it."""
        special, spellings = self._special
        ids: list[int] = []
        trim = False
        pieces = template.pieces(conversation, reply, spellings)
        for (text, known), (after, then) in pairwise([*pieces, ("", False)]):
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
        """The tokenizer without the space that it puts before a text."""
        from tokenizers import Tokenizer as Inner

        found = json.loads(self.inner.to_str())
        if not _unprefixed(found):
            return self.inner
        inside = Inner.from_str(json.dumps(found))
        inside.encode_special_tokens = True
        return inside

    @cached_property
    def _first_only(self) -> bool:
        """Whether only the first piece of a text gets a space, not each piece between special tokens."""
        cutting = self.inner.pre_tokenizer
        return cutting is not None and b'"prepend_scheme":"first"' in cutting.__getstate__()

    # folders

    def _facts(self) -> dict[str, Any]:
        begins = {"add_bos_token": bool(self.special.start)} if self.special.start in ((), (self.special.bos,)) else {}
        return {**dict(self.special.names), **begins, "eos_token_ids": list(self.ends)}

    def save(self, folder: Path) -> None:
        """Write a tokenizer.json, and in other files its special tokens, ends and chat template."""
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
        """Train a byte-level BPE, which encodes every text and restores it exactly."""
        from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
        from tokenizers import Tokenizer as Inner

        inner = Inner(models.BPE())
        digits = pre_tokenizers.Split(Regex(r"\p{N}"), "isolated")  # so that numbers are read alike everywhere
        words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        inner.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
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
        """Read the tokenizer of a folder in any published form; `eos`: see `read_special`."""
        config = described(folder)
        inner = read_inner(folder, config)
        bare = not (folder / JSON).is_file() and (folder / MODEL).is_file()
        special = read_special(folder, inner, config, eos, start=bare)
        return Tokenizer(inner, special, read_template(folder, config, special.names))


def _encoded(inner: "tokenizers.Tokenizer", text: str) -> list[int]:
    return _caught(lambda: inner.encode(text, add_special_tokens=False).ids)


def _caught(work: Callable[[], T]) -> T:
    """The result of the library; WeightsError where it panics, which is no Exception."""
    try:
        return work()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError | TypeError):
            raise
        raise WeightsError("the tokenizer fails on a text", got=str(error)) from error


def _unprefixed(found: dict[str, Any]) -> bool:
    """Remove the steps of a tokenizer.json that put a space before a text; False where there are none."""
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
