"""Is what a batch writes what each prompt would get alone, and is the text told right, whole and in pieces?"""

from dataclasses import dataclass, field, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic.adapters import attach
from moesaic.config import Feature
from moesaic.errors import NonFiniteError, RecipeError
from moesaic.generate import Engine, Generation, RoutingReport, Sampling
from moesaic.generate.row import pending
from moesaic.model.deciding import Decider
from moesaic.model.mixture import AdapterMixture, Routed, Session
from moesaic.nn import Cache, Slots
from moesaic.routing import Gates, Routing, Selection
from moesaic.routing.routers import KeywordRouter, Router
from moesaic.testing import ByteTokenizer, FixedRouter, tiny_config, tiny_decoder, toy_expert

PROMPTS = ["add the sum", "def f", "hello there, you", "a sum of code"]
WARM = Sampling(temperature=1.5, top_p=0.95, seed=7)


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def mixture(router: Router | None = None) -> AdapterMixture:
    """Two experts, chosen by words: each prompt above is answered by another, the third by the base."""
    decoder = tiny_decoder(vocab_size=257)
    attach(decoder, [toy_expert(tiny_decoder(vocab_size=257), seed) for seed in (1, 2)])
    router = router or KeywordRouter([["sum"], ["def", "code"]])
    decider = Decider.over(decoder, ("maths", "code"), router, Feature.parse("text"), Selection(kind="soft"))
    return AdapterMixture(decoder, decider, 0)


@pytest.fixture
def engine() -> Engine:
    return Engine(mixture(), ByteTokenizer())


@dataclass
class Script:
    """A mixture that writes, row by row, what stands in its script, then ends; it notes how many rows it computed."""

    texts: dict[str, bytes]
    computed: list[int] = field(default_factory=list)
    names: tuple[str, ...] = ("scribe",)
    level: str = "sequence"
    context: int = 10_000
    scripts: dict[int, bytes] = field(default_factory=dict)  # by slot

    def said(self, cache):
        steps = zip(cache.slots, cache.lengths.tolist(), strict=True)
        return [(*self.scripts[slot], 256)[step] for slot, step in steps]

    def say(self, session):
        return torch.nn.functional.one_hot(torch.tensor(self.said(session.cache)), 257) * 50.0

    def room(self, rows, tokens):
        return Slots(tiny_config(num_layers=1), rows, 1, torch.zeros(()))

    def prefill(self, prompts, room, slots, forced):
        routing = forced or self.route(prompts)
        self.scripts |= zip(slots, (self.texts[text] for text in prompts.texts), strict=True)
        session = Session(routing, Gates.of(routing.weights), Cache.of(room, slots))
        return self.say(session), session

    def decode(self, ids, session):
        assert ids.tolist() == self.said(session.cache), "a row was handed another's token"
        self.computed.append(len(ids))
        session = replace(session, cache=session.cache.advance(1))
        return self.say(session), session

    def route(self, prompts):
        return Routing(torch.ones(len(prompts.texts), 1), torch.ones(len(prompts.texts), 1))

    def score(self, ids, gates):
        raise NotImplementedError


def written(raw: bytes, **options) -> Generation:
    return Engine(Script({"p": raw}), ByteTokenizer()).generate(["p"], max_new_tokens=500, **options)[0][0]


def streamed(raw: bytes, **options) -> list[str]:
    return list(Engine(Script({"p": raw}), ByteTokenizer()).stream("p", max_new_tokens=500, **options))


# --- a batch is its rows ----------------------------------------------------------------------------------------------


def test_greedy_rows_equal_the_naive_loop_without_cache_or_batch(engine):
    together = engine.generate(PROMPTS, max_new_tokens=12)
    for prompt, (generation,) in zip(PROMPTS, together, strict=True):
        row = engine.tokenizer.encode(prompt)
        weights = torch.tensor([list(generation.routing.weights.values())])
        for _ in generation.ids:
            row.append(int(engine.mixture.score(torch.tensor([row]), Gates.of(weights))[0, -1].argmax()))
        assert generation.ids == row[-len(generation.ids) :]
        assert (generation.finish, len(generation.ids)) == ("length", 12)
    assert len({tuple(g.ids) for (g,) in together}) == 4


@pytest.mark.parametrize("sampling", [Sampling(), WARM], ids=["greedy", "sampled"])
def test_a_prompt_gets_the_same_alone_and_in_any_batch(engine, sampling):
    together = engine.generate(PROMPTS, max_new_tokens=12, sampling=sampling)
    assert together == [engine.generate([p], max_new_tokens=12, sampling=sampling)[0] for p in PROMPTS]
    assert together[::-1] == engine.generate(PROMPTS[::-1], max_new_tokens=12, sampling=sampling)


def test_continuations_differ_share_a_prefill_and_equal_single_runs_of_their_seeds(engine, monkeypatch):
    prefills, prefill = [], AdapterMixture.prefill
    monkeypatch.setattr(
        AdapterMixture, "prefill", lambda s, p, *rest: prefills.append(len(p.ids)) or prefill(s, p, *rest)
    )
    together = engine.generate(PROMPTS, max_new_tokens=10, sampling=WARM, n=3)
    assert prefills == [4]
    for prompt, three in zip(PROMPTS, together, strict=True):
        assert len({tuple(g.ids) for g in three}) == 3
        for index, generation in enumerate(three):
            single = Sampling(temperature=1.5, top_p=0.95, seed=7 + index)
            assert [[generation]] == engine.generate([prompt], max_new_tokens=10, sampling=single)


def test_rows_that_finish_early_change_nothing_for_the_others(engine):
    whole = engine.generate(PROMPTS, max_new_tokens=16)
    tokenizer = ByteTokenizer()
    tokenizer.eos = whole[1][0].ids[4]
    for (full,), (cut,) in zip(
        whole, Engine(engine.mixture, tokenizer).generate(PROMPTS, max_new_tokens=16), strict=True
    ):
        size = full.ids.index(tokenizer.eos) if tokenizer.eos in full.ids else 16
        assert (cut.ids, cut.finish) == (full.ids[:size], "stop" if size < 16 else "length")


def test_finished_rows_are_not_computed():
    script = Script({"one": b"a", "two": b"abc", "three": b"abcdefgh"})
    outcome = Engine(script, ByteTokenizer()).generate(["one", "two", "three"], max_new_tokens=6)
    assert [(g.text, g.finish) for (g,) in outcome] == [("a", "stop"), ("abc", "stop"), ("abcdef", "length")]
    assert script.computed == [3, 2, 2, 1, 1], "the last token of a text is read by nobody"


# --- who answers ------------------------------------------------------------------------------------------------------


def test_every_prompt_is_routed_once_and_says_who_answered(engine, monkeypatch):
    calls, route = [], AdapterMixture.route
    monkeypatch.setattr(AdapterMixture, "route", lambda s, p: calls.append(p.texts) or route(s, p))
    reports = [g.routing for some in engine.generate(PROMPTS, max_new_tokens=5, n=2) for g in some][::2]
    assert calls == [PROMPTS]
    assert [r.chosen for r in reports] == ["maths", "code", "base", "maths"]
    assert reports[2] == RoutingReport({"maths": 0.0, "code": 0.0}, "base", {"maths": 0.0, "code": 0.0, "base": 1.0})
    assert reports == engine.route(PROMPTS)
    assert engine.route([]) == [] == engine.generate([])


@pytest.mark.parametrize("expert", ["maths", "code", "base"])
def test_a_forced_expert_answers_as_if_the_router_always_chose_it(engine, expert):
    logits = {"maths": [0.0, -torch.inf], "code": [-torch.inf, 0.0], "base": [-torch.inf, -torch.inf]}[expert]
    fixed = Engine(mixture(FixedRouter([logits] * 4)), ByteTokenizer())
    forced = engine.generate(PROMPTS, max_new_tokens=8, expert=expert)
    assert forced == fixed.generate(PROMPTS, max_new_tokens=8)
    assert {g.routing.chosen for (g,) in forced} == {expert}
    assert "".join(engine.stream(PROMPTS[0], max_new_tokens=8, expert=expert)) == forced[0][0].text


# --- text -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("raw", "text"), [(b"\nyes", "yes"), (b"\n\nyes", "\nyes"), (b"yes\n", "yes\n"), (b"\n", "")])
def test_one_leading_newline_belongs_to_the_prompt(raw, text):
    assert written(raw).text == text == "".join(streamed(raw))


TEXT = st.text("aab\n é€😀\ufffd", min_size=1, max_size=14)
BYTES = st.one_of(
    TEXT.map(str.encode),
    st.binary(min_size=1, max_size=12),
    st.tuples(TEXT, st.binary(min_size=1, max_size=3)).map(lambda p: p[0].encode() + p[1]),
)


@settings(deadline=None)
@given(BYTES, st.lists(TEXT.filter(bool), max_size=3).map(tuple), st.integers(1, 20))
def test_streaming_tells_the_same_text_and_never_takes_a_word_back(raw, stop, limit):
    engine = Engine(Script({"p": raw}), ByteTokenizer())
    ((whole,),) = engine.generate(["p"], max_new_tokens=limit, stop=stop)
    stream, told = engine.stream("p", max_new_tokens=limit, stop=stop), []
    while True:
        try:
            told.append(next(stream))
        except StopIteration as end:
            assert end.value == whole
            break
    assert "".join(told) == whole.text
    assert all(told)
    assert not any(word in whole.text for word in stop)
    if not any(word in raw[:limit].decode(errors="replace") for word in stop):
        assert whole.text == raw[:limit].decode(errors="replace").removeprefix("\n")


def test_a_piece_is_told_as_soon_as_it_is_certain():
    assert streamed("né€😀.".encode()) == ["n", "é", "€", "😀", "."]
    assert streamed(b"a</b></s>", stop=("</s>",)) == ["a", "</b", ">"]
    assert streamed(b"end</", stop=("</s>",)) == ["e", "n", "d", "</"]


OUTPUT = "\nTo be, or not to be: €5 für 😀😀 questions; aaab."


@settings(max_examples=40)
@given(st.data())
def test_a_text_ends_before_its_first_stop_string(data):
    shown = OUTPUT[1:]
    start = data.draw(st.integers(0, len(shown) - 1))
    word = shown[start : data.draw(st.integers(start + 1, len(shown)))]
    generation = written(OUTPUT.encode(), stop=("absent", word))
    assert (generation.text, generation.finish) == (shown[: shown.find(word)], "stop")
    expected = OUTPUT[: 1 + shown.find(word) + len(word)].encode()
    assert bytes(generation.ids) == expected, "nothing is computed after the stop string"


def test_what_may_begin_a_stop_string_is_held_back():
    assert pending("xaa", ("aab",)) == 2
    assert pending("xaa", ("aab", "xaac")) == 3
    assert pending("x", ("x",)) == 0
    assert pending("", ("ab",)) == 0


class Pieces:
    """Tokens are words; as in sentencepiece, a text loses the space it would start with."""

    ends, words = (0,), ("", " Hello", " world", "", "!")

    def begin(self, text, raw=False):
        return [4]

    def decode(self, ids):
        return "".join(self.words[i] for i in ids).removeprefix(" ")


def test_spaces_between_words_survive_a_tokenizer_that_trims_the_start():
    engine = Engine(Script({"!": bytes([1, 2, 3, 2, 4])}), Pieces())
    assert engine.generate(["p"], max_new_tokens=5)[0][0].text == " Hello world world!"
    assert list(engine.stream("p", max_new_tokens=5)) == [" Hello", " world", " world", "!"]


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        (["fine", ""], {}, r"prompts\[1\]: the prompt is empty"),
        (["x" * 60], {"max_new_tokens": 5}, "at most 64 tokens; got 60 of the prompt \\+ 5 new"),
        (["x"], {"expert": "mahts"}, "maths or code or base; got mahts; did you mean 'maths'"),
        (["x"], {"max_new_tokens": 0}, "max_new_tokens: .* expected >= 1"),
        (["x"], {"stop": ("a", "")}, "empty stop string"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_computed(engine, prompts, options, message):
    with pytest.raises(RecipeError, match=message):
        engine.generate(prompts, **{"max_new_tokens": 3, **options})
    with pytest.raises(RecipeError):
        engine.stream(prompts[-1], **{"max_new_tokens": 3, **options})


def test_the_context_can_be_used_to_its_last_token(engine):
    assert len(engine.generate(["x" * 60], max_new_tokens=4)[0][0].ids) == 4
    with pytest.raises(RecipeError, match="n: nothing to generate"):
        engine.generate(["x"], n=0)
    with pytest.raises(RecipeError, match="65 of the prompt"):
        engine.route(["x" * 65])


def test_a_model_that_breaks_is_an_error_and_no_text(engine):
    with torch.no_grad():
        engine.mixture.decoder.norm.weight.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match="row 0, 1: "):
        engine.generate(["x", "y"], max_new_tokens=3)


def test_a_stream_leaves_the_callers_mode_alone_and_may_be_dropped(engine):
    stream = engine.stream("hello", max_new_tokens=30)
    next(stream)
    assert not torch.is_inference_mode_enabled()
    stream.close()


_: type[Routed] = AdapterMixture


def test_the_end_never_comes_first_so_whoever_asks_gets_something():
    tokenizer = ByteTokenizer()
    engine = Engine(mixture(), tokenizer)
    ((before,),) = engine.generate([PROMPTS[0]], max_new_tokens=4)
    tokenizer.eos = before.ids[0]  # now the likeliest first token would end the text
    ((after,),) = engine.generate([PROMPTS[0]], max_new_tokens=4)
    assert after.ids and after.ids[0] != before.ids[0]
