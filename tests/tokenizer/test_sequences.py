"""Property: with real tokenizers a sequence starts alike wherever it is made, and a stream is the whole text."""

from itertools import pairwise

import pytest
import tokenizers
import torch
from encoding import encode

from moesaic.data.rows import Example
from moesaic.generate.engine import Engine
from moesaic.generate.request import Request, RoutingReport
from moesaic.generate.row import Row
from moesaic.model.mixture import Session
from moesaic.nn import Cache, Slots
from moesaic.routing import Gates, Routing
from moesaic.testing import tiny_config
from moesaic.tokenizer import Special, Tokenizer

ROUTING = RoutingReport({}, "base")
STORY = "Once upon a time, 日本語 and 🙂🙂: naïve café,  two spaces.\n\tA tab \u0939\u093f\u0928\u094d\u0926\u0940!"


@pytest.fixture(scope="module")
def ours() -> Tokenizer:
    return Tokenizer.train(["the sum of two and two is four"], 270)


@pytest.fixture(scope="module", params=["ours", "ours, with a bos token", "stories260K", "tokenizers/llama-2"])
def tokenizer(request, ours) -> Tokenizer:
    if request.param == "ours":
        return ours
    if request.param.startswith("ours"):
        inner = tokenizers.Tokenizer.from_str(ours.inner.to_str())
        inner.add_special_tokens(["<bos>"])
        return Tokenizer(inner, Special(0, bos=ours.vocab_size, start=(ours.vocab_size,)))
    shared = request.getfixturevalue("shared")
    return Tokenizer.load(shared / "models" / request.param, 2)


class Parrot:
    """A mixture that says what it was told to, then ends; it notes the ids that it was given."""

    names, level, context = ("parrot",), "sequence", 10_000

    def __init__(self, says: list[int], size: int):
        self.says, self.size = says, size

    def route(self, prompts):
        self.given = [row[:length] for row, length in zip(prompts.ids.tolist(), prompts.lengths.tolist(), strict=True)]
        return Routing(torch.ones(len(prompts.ids), 1), torch.ones(len(prompts.ids), 1))

    def say(self):
        return torch.nn.functional.one_hot(torch.tensor([self.says[self.at]]), self.size) * 50.0

    def room(self, rows, tokens):
        return Slots(tiny_config(), rows, 1, torch.zeros(()))

    def prefill(self, prompts, room, slots, forced):
        self.at, routing = 0, self.route(prompts)
        return self.say(), Session(routing, Gates.of(routing.weights), Cache.of(room, slots))

    def decode(self, ids, session):
        self.at += 1
        return self.say(), session

    def score(self, ids, gates):
        raise NotImplementedError


def test_a_prompt_is_the_same_ids_in_training_and_in_generation(tokenizer):
    row = encode(Example("Two and two?", "Four.", "g"), tokenizer, 100, 64)
    parrot = Parrot(row.ids[row.prompt :], tokenizer.vocab_size)
    ((written,),) = Engine(parrot, tokenizer).generate(["Two and two?"], max_new_tokens=50)
    assert parrot.given == [row.ids[: row.prompt]]
    assert (written.text, written.finish) == ("Four.", "stop"), "what was learned is what is said"
    assert tokenizer.decode(row.ids) == "Two and two?\nFour."
    whole = tokenizer.begin("Two and two?\nFour.")
    assert [*whole, tokenizer.eos] == row.ids or tokenizer.start == (), "no stray space between prompt and response"


def test_plain_text_and_prompts_that_are_cut_keep_what_starts_a_sequence(tokenizer):
    start = list(tokenizer.start)
    text = encode(Example("", STORY, "g"), tokenizer, 1000, 8)
    assert text.ids == [*start, *tokenizer.encode(STORY), tokenizer.eos]
    cut = encode(Example(STORY, "Four.", "g"), tokenizer, 16, 8)
    response = tokenizer.answer(STORY, "Four.")[:12]
    assert cut.lost and len(cut.ids) == 16 and cut.ids[: len(start)] == start
    given = cut.ids[len(start) : cut.prompt]
    assert given == tokenizer.encode(STORY)[-len(given) :], "the end of the prompt"
    assert cut.ids[cut.prompt :] == response[: len(cut.ids) - cut.prompt]


def test_ours_starts_with_nothing_and_its_ids_are_as_ever(ours):
    assert ours.start == () and ours.begin(STORY) == ours.encode(STORY) == ours.follow(STORY)
    assert encode(Example("ask", "say", "g"), ours, 100, 8).ids == [*ours.encode("ask"), *ours.encode("\nsay"), 0]


def pieces(tokenizer: Tokenizer, given: list[int], ids: list[int]) -> tuple[list[str], str]:
    """What a row shows after each id, and its text in the end."""
    row, shown = Row(tokenizer, Request(prompt=given), given, len(ids), torch.Generator(), ROUTING), [""]
    for id in ids:
        row.add(id)
        shown.append(row.shown)
    return [b.removeprefix(a) for a, b in pairwise(shown)], row.text


@pytest.mark.parametrize("split", range(1, len(STORY), 3))
def test_the_pieces_of_a_stream_are_the_whole(tokenizer, split):
    ids = tokenizer.begin(STORY)
    at = split * len(ids) // len(STORY)
    if "\ufffd" in tokenizer.decode(ids[:at]):
        at = len(tokenizer.start) + 1  # a prompt is text: it ends between two characters
    given, written = ids[:at], ids[at:]
    shown, text = pieces(tokenizer, given, written)
    assert "".join(shown) == text
    assert text == STORY.removeprefix(tokenizer.decode(given)).removeprefix("\n")
    assert not any("\ufffd" in piece for piece in shown), "no half of a character is ever shown"


def test_a_row_ends_at_any_of_the_ends(ours):
    tokenizer = Tokenizer(ours.inner, Special(0, (7, 9)))
    for end in (0, 7, 9):
        row = Row(tokenizer, Request(prompt=[7]), [], 10, torch.Generator(), ROUTING)
        for id in (20, 21, end):
            row.add(id)
        assert (row.ids, row.finish) == ([20, 21], "stop")


def test_no_end_comes_first(ours):
    tokenizer = Tokenizer(ours.inner, Special(0, (7,)))
    parrot = Parrot([7, 30, 0], tokenizer.vocab_size)
    ((written,),) = Engine(parrot, tokenizer).generate(["two"], max_new_tokens=2)
    assert written.ids[0] not in (0, 7)
