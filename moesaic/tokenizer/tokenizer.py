"""A tokenizer: text -> ids at the start of a sequence or within one, conversations -> ids, ids -> text.

Knows nothing about models or batches, nor how tokenizers are published.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from moesaic.errors import DataError, WeightsError
from moesaic.files import disk
from moesaic.files.plain import encoded
from moesaic.tokenizer import templates
from moesaic.tokenizer.chats import Chat, Chats, Part, changed
from moesaic.tokenizer.conversation import Conversation, Exchange, Message, plain, talks
from moesaic.tokenizer.inside import inside
from moesaic.tokenizer.published import JSON, MODEL, read_inner
from moesaic.tokenizer.sequences import Passage, Sequence, Text, chunks
from moesaic.tokenizer.special import GENERATION, GENERIC, Special, begin_with, described, is_generic, read_special
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
        asked = self._asked(prompt, raw)
        one = self._text(asked) if isinstance(asked, str) else self._chat(self.chats.prompt(asked))
        return one.ids(self._known([one]))[0]

    def beginnings(self, texts: Iterable[str]) -> Iterator[list[int]]:
        """Ids of each text as it is, at the start of a sequence; many are encoded together."""
        for some in chunks(map(self._text, texts)):
            known = self._known(some)
            yield from (one.ids(known)[0] for one in some)

    def follow(self, text: str) -> list[int]:
        """Ids of a text that continues another, without the space that some tokenizers put first."""
        return _encoded(self._inside, text)

    def answer(self, prompt: str | Conversation, response: str, raw: bool = False) -> list[int]:
        """Ids of a response, to follow those of `begin(prompt, raw)`, with the token that ends it.

        In a conversation the template writes and ends it. Otherwise it starts on a new line.
        """
        asked = self._asked(prompt, raw)
        if isinstance(asked, str):
            return [*self.follow("\n" + response), self.eos]
        ((_, ids),) = self.exchanges([Exchange(asked, response)])
        return ids

    def exchanges(self, exchanges: Iterable[Exchange]) -> Iterator[tuple[list[int], list[int]]]:
        """Ids of each prompt and of the response to it, as of `begin` and `answer`; many are encoded together.

        Exchanges one after another of one conversation are slices of its ids: it is rendered and encoded once.
        """
        for some in chunks(one for talk in talks(exchanges) for one in self._sequences(talk)):
            known = self._known(some)
            for one in some:
                yield from one.exchanges(known, self.follow)

    def check(self, exchanges: Iterable[Exchange]) -> None:
        """Raise DataError for exchanges that the chat template refuses; nothing is encoded."""
        for talk in talks(exchanges) if self.template else ():
            self._chats_of(talk)

    def decode(self, ids: list[int]) -> str:
        """The text of ids, without special tokens and unknown ids."""
        return _caught(lambda: self.inner.decode(ids, skip_special_tokens=True))

    def spelled(self, text: str) -> str | None:
        """A special token that a text spells, which is read as text all the same; None without any."""
        return self._special.first(text)

    @cached_property
    def _special(self) -> Spellings:
        return Spellings.special(self.inner)

    # sequences

    def _asked(self, prompt: str | Conversation, raw: bool) -> str | Conversation:
        """The form in which a model reads a prompt: a conversation for the template, or a text."""
        if isinstance(prompt, str):
            return prompt if raw or not self.template else (Message("user", prompt),)
        return prompt if self.template else plain(prompt)

    def _sequences(self, talk: list[Exchange]) -> list[Sequence]:
        """The sequences of exchanges, each of which continues the conversation of the one before."""
        if self.template:
            return [self._chat(one) for one in self._chats_of(talk)]
        texts = [one.prompt if isinstance(one.prompt, str) else plain(one.prompt) for one in talk]
        return [self._text(text, "\n" + one.response) for text, one in zip(texts, talk, strict=True)]

    def _chats_of(self, talk: list[Exchange]) -> list[Chat]:
        asked = [(Message("user", one.prompt),) if isinstance(one.prompt, str) else one.prompt for one in talk]
        conversation = (*asked[-1], Message("assistant", talk[-1].response))
        try:
            return self.chats.answers(conversation, [len(prompt) for prompt in asked])
        except DataError as error:
            error.at(path=talk[-1].source or None)
            raise

    def _text(self, text: str, response: str | None = None) -> Sequence:
        """The sequence of a text as it is, and of the response to it."""
        begun: list[int | Text] = [*self.start, Text(text)]
        if response is None:
            return Sequence(begun, [])
        whole = [*begun, Text(response, self._prefixing), self.eos]
        return Sequence(whole, [Passage(len(begun), None, len(whole))])

    def _chat(self, chat: Chat) -> Sequence:
        """The sequence of a conversation."""
        later = self._first_only and self._prefixing

        def filled(at: int, piece: int | Part) -> int | Text:
            return piece if isinstance(piece, int) else Text(piece.filled(chat.conversation), later and at > 0)

        pieces = [filled(at, piece) for at, piece in enumerate(chat.pieces)]
        passages = list[Passage]()
        for cut in chat.cuts:
            head = Text(cut.head.filled(chat.conversation), later and cut.at > 0) if cut.head else None
            whole = pieces[cut.at] if head else None
            if head and (isinstance(whole, int | None) or not whole.text.startswith(head.text)):
                raise changed()
            passages.append(Passage(cut.at, head, cut.end, () if cut.closed else (self.eos,)))
        return Sequence(pieces, passages)

    def _known(self, sequences: Iterable[Sequence]) -> dict[Text, list[int]]:
        """The ids of every text of some sequences, each encoded once."""
        texts = {text: None for one in sequences for text in one.texts()}
        known = dict[Text, list[int]]()
        for within, inner in ((False, self.inner), (True, self._inside)):
            some = [text for text in texts if text.inside == within]
            known |= zip(some, _encoded_all(inner, [text.text for text in some]), strict=True)
        return known

    @cached_property
    def chats(self) -> Chats:
        """Conversations in the chat template."""
        assert self.template
        tokens = self.inner.get_added_tokens_decoder()
        special = {token.content: (id, token) for id, token in tokens.items() if token.special}
        return Chats(self.template, special, self.ends)

    @cached_property
    def _inside(self) -> "tokenizers.Tokenizer":
        """The tokenizer without the space that it puts before a text."""
        return _caught(lambda: inside(self.inner))

    @cached_property
    def _first_only(self) -> bool:
        """Whether only the first piece of a text gets a space, not each piece between special tokens."""
        cutting = self.inner.pre_tokenizer
        return cutting is not None and b'"prepend_scheme":"first"' in cutting.__getstate__()

    @cached_property
    def _prefixing(self) -> bool:
        """Whether a space is put before a text."""
        return self._inside is not self.inner

    # folders

    def _facts(self) -> dict[str, Any]:
        begins = {"add_bos_token": bool(self.special.start)} if self.special.start in ((), (self.special.bos,)) else {}
        return {**dict(self.special.names), **begins, "eos_token_ids": list(self.ends)}

    def save(self, folder: Path) -> None:
        """Write a tokenizer.json, and in other files its special tokens, ends and chat template."""
        written = type(self.inner).from_str(self.inner.to_str())
        begin_with(written, self.special.start)
        disk.create(folder / JSON, f"{written.to_str(pretty=True)}\n".encode())
        if self.special != Special(self.eos):
            facts = self._facts()
            ends = facts.pop("eos_token_ids")
            disk.create(folder / "tokenizer_config.json", encoded({"tokenizer_class": GENERIC, **facts}, indent=2))
            disk.create(folder / GENERATION, encoded({"eos_token_id": ends}, indent=2))
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
        special = read_special(folder, inner, config, eos, start=bare, flagged=bare or not is_generic(config))
        begin_with(inner, special.start)
        return Tokenizer(inner, special, read_template(folder, config, special.names))


def _encoded(inner: "tokenizers.Tokenizer", text: str) -> list[int]:
    return _caught(lambda: inner.encode(text, add_special_tokens=False).ids)


def _encoded_all(inner: "tokenizers.Tokenizer", texts: list[str]) -> list[list[int]]:
    return _caught(lambda: [one.ids for one in inner.encode_batch_fast(texts, add_special_tokens=False)])


def _caught(work: Callable[[], T]) -> T:
    """The result of the library; WeightsError where it panics, which is no Exception."""
    try:
        return work()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError | TypeError):
            raise
        raise WeightsError("the tokenizer fails on a text", got=str(error)) from error
