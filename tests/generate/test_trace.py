"""Is every decision in the file before anything is answered, and is nothing read but what holds together?"""

import hashlib
import json
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
import torch

from moesaic.adapters import attach
from moesaic.config import Feature
from moesaic.errors import DataError, MoesaicError, NonFiniteError, RecipeError
from moesaic.generate import Engine, Request
from moesaic.generate.trace import Decision, Trace, decision_of, numbered, read_trace, row_of, summary
from moesaic.model.deciding import Decider
from moesaic.model.features import Prompts
from moesaic.model.mixture import AdapterMixture
from moesaic.routing import Routing, Selection
from moesaic.routing.routers import KeywordRouter
from moesaic.testing import ByteTokenizer, tiny_decoder, toy_expert
from moesaic.tokenizer import Message
from moesaic.tokenizer.conversation import plain

NAMES, MIXTURE = ("maths", "code"), "0123456789ab"
PROMPTS = ["add the sum", "def f", "hello there, you"]
ROW = {
    "time": "2026-01-31T12:00:00.123Z",
    "prompt": "add the sum",
    "tokens": 11,
    "probabilities": {"maths": 0.75, "code": 0.25},
    "weights": {"maths": 1.0, "code": 0},
    "chosen": "maths",
    "forced": False,
    "raw": False,
    "mixture": MIXTURE,
    "correction": None,
}
HASHED = {key: value for key, value in ROW.items() if key != "prompt"} | {"prompt_sha256": "0" * 64}
TALK = {key: value for key, value in ROW.items() if key != "prompt"}
TALK["messages"] = [{"role": "user", "content": "the sum?"}, {"role": "assistant", "content": "Of what?"}] * 2
ABSTAINED = ROW | {"probabilities": None, "weights": {"maths": 0, "code": 0}, "chosen": "base"}


@pytest.fixture(scope="module")
def mixture() -> AdapterMixture:
    """Two experts chosen by words: the prompts above go to the first, to the second and to the base."""
    decoder = tiny_decoder(vocab_size=257)
    attach(decoder, [toy_expert(tiny_decoder(vocab_size=257), seed) for seed in (1, 2)])
    router = KeywordRouter([["sum", "def"], ["def", "f"]])
    decider = Decider.over(decoder, NAMES, router, Feature.parse("text"), Selection(kind="top_1"))
    return AdapterMixture(decoder, decider, 0)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "trace.jsonl"


def generated(mixture, path, **options) -> list[Decision]:
    with Trace(path, NAMES, MIXTURE, texts=True) as trace:
        engine = Engine(mixture, ByteTokenizer(), listener=trace.record)
        engine.generate(PROMPTS, max_new_tokens=2, **options)
    return list(read_trace(path))


def written(path, *rows) -> list[Decision]:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(read_trace(path))


# --- what is recorded -------------------------------------------------------------------------------------------------


def test_each_prompt_is_a_row_that_says_who_was_chosen_and_how_sure_the_router_was(mixture, path):
    before = datetime.now(UTC) - timedelta(milliseconds=1)  # a trace rounds
    decisions = generated(mixture, path)
    after = datetime.now(UTC) + timedelta(milliseconds=1)
    assert [(one.prompt, one.chosen, one.tokens) for one in decisions] == [
        ("add the sum", "maths", 11),
        ("def f", "code", 5),
        ("hello there, you", "base", 16),
    ]
    sure = [*torch.tensor([1.0, 2.0]).softmax(-1).tolist(), 0.0]
    assert list(decisions[1].probabilities.values()) == pytest.approx(sure), "the softmax of the logits"
    assert decisions[1].weights == {"maths": 0, "code": 1}, "what was selected from it"
    assert decisions[1].confidence == pytest.approx(sure[1])
    assert not any(one.forced or one.correction for one in decisions)
    assert {one.mixture for one in decisions} == {MIXTURE}
    assert all(before <= one.time <= after for one in decisions)


def test_where_the_router_abstains_the_base_has_all_the_probability(mixture, path):
    (*_, silent) = generated(mixture, path)
    assert silent.probabilities == {"maths": 0.0, "code": 0.0, "base": 1.0} and silent.confidence is None
    assert set(silent.weights.values()) == {0}


@pytest.mark.parametrize("expert", ["code", "base"])
def test_where_a_caller_names_the_expert_the_router_said_nothing(mixture, path, expert):
    decisions = generated(mixture, path, expert=expert)
    assert len(decisions) == 3
    assert all(one.forced and one.chosen == expert and one.probabilities is None for one in decisions)


def test_several_continuations_of_a_prompt_are_one_decision(mixture, path):
    assert len(generated(mixture, path, n=3)) == 3


def test_a_query_that_nothing_is_generated_by_is_not_recorded(mixture, path):
    with Trace(path, NAMES, MIXTURE) as trace:
        Engine(mixture, ByteTokenizer(), listener=trace.record).route(PROMPTS)
    assert path.read_bytes() == b""


def test_without_texts_only_the_hash_of_a_prompt_is_written(mixture, path):
    with Trace(path, NAMES, MIXTURE) as trace:
        Engine(mixture, ByteTokenizer(), listener=trace.record).generate(["the sum of zwölf"], max_new_tokens=1)
    (one,) = read_trace(path)
    assert one.prompt is None and one.prompt_sha256 == hashlib.sha256("the sum of zwölf".encode()).hexdigest()
    assert b"sum" not in path.read_bytes()


def test_a_conversation_is_written_message_by_message_or_as_its_hash(mixture, path):
    talk = (Message("user", "the sum"), Message("assistant", "Of what?"), Message("user", "of 2 and 3"))
    for texts in (True, False):
        with Trace(path, NAMES, MIXTURE, texts=texts) as trace:
            Engine(mixture, ByteTokenizer(), listener=trace.record).generate([talk, "def f"], max_new_tokens=1)
    told, prompt, hashed, _ = read_trace(path)
    assert told.asked == told.messages == talk and told.prompt is None and told.chosen == "maths"
    assert told.text == plain(talk) == "User:\nthe sum\nAssistant:\nOf what?\nUser:\nof 2 and 3\nAssistant:"
    assert told.tokens == len(plain(talk)), "the router has read all of it"
    assert prompt.asked == prompt.text == "def f" and prompt.messages is None
    assert hashed.prompt_sha256 == hashlib.sha256(plain(talk).encode()).hexdigest() and hashed.asked is None


def test_a_row_is_there_before_the_first_piece_of_text(mixture, path):
    trace = Trace(path, NAMES, MIXTURE, texts=True)
    pieces = Engine(mixture, ByteTokenizer(), listener=trace.record).stream("def f", max_new_tokens=20)
    assert path.read_bytes() == b"", "nothing is decided yet"
    next(pieces)
    assert [one.prompt for one in read_trace(path)] == ["def f"]
    trace.close()


def test_a_trace_goes_on_where_it_ended(mixture, path):
    generated(mixture, path)
    assert len(generated(mixture, path)) == 6


def test_a_row_of_the_first_traces_was_not_raw(path):
    (one,) = written(path, {key: value for key, value in ROW.items() if key != "raw"})
    assert not one.raw
    (one,) = written(path, ROW | {"raw": True})
    assert one.raw


def test_what_is_written_is_what_is_read(path):
    for row in (ROW, HASHED, TALK, ABSTAINED, ROW | {"correction": "base"}):
        (one,) = written(path, row)
        assert decision_of(row_of(one)) == one
        assert row_of(one) == row | {"time": "2026-01-31T12:00:00.123+00:00"}


def test_a_router_that_gives_no_numbers_is_an_error(path):
    with Trace(path, NAMES, MIXTURE) as trace, pytest.raises(NonFiniteError, match="router's probabilities"):
        broken = torch.full((1, 2), torch.nan)
        trace.record(["x"], Prompts.pad([[1]], ["x"]), Routing(broken, broken), False)
    assert path.read_bytes() == b""


def test_names_that_no_reader_would_take_are_refused_at_once(path):
    with pytest.raises(RecipeError, match="not a name for an expert"):
        Trace(path, ("maths", "../code"), MIXTURE)
    assert not path.exists()


# --- which files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["not a trace", "not a trace\nnor here", '{"step": 1}\n', '{"step": 1}', "\n"])
def test_a_file_that_is_no_trace_is_refused_and_left_as_it_is(tmp_path, content):
    path = tmp_path / "notes.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=r"notes\.jsonl:1: .*`moesaic generate --trace` writes"):
        Trace(path, NAMES, MIXTURE)
    assert path.read_text() == content


@pytest.mark.parametrize("torn", ['{"ti', '{"time": "2026-01-31T12:00', json.dumps(ROW)[:-1]])
def test_a_row_torn_by_a_crash_is_no_hindrance(mixture, path, torn):
    path.parent.mkdir()
    for whole in ("", json.dumps(ROW) + "\n"):
        path.write_text(whole + torn)
        assert len(generated(mixture, path)) == 3 + bool(whole)


def test_a_last_row_that_an_editor_left_without_a_line_break_is_kept(mixture, path):
    path.parent.mkdir()
    path.write_text(json.dumps(ROW) + "\n" + json.dumps(ROW | {"correction": "code"}))
    assert [one.correction for one in read_trace(path)] == [None, "code"]
    assert [one.correction for one in generated(mixture, path)] == [None, "code", None, None, None]


WRITE = """
import os, sys
from pathlib import Path
import torch
from moesaic.generate.trace import Trace
from moesaic.model.features import Prompts
from moesaic.routing import Routing

path, who = Path(sys.argv[1]), sys.argv[2]
os.fsync = lambda fd: None  # waiting for the disk would keep the two apart
print("ready", flush=True)
sys.stdin.readline()
decided = Routing(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]]))
for opening in range(20):
    with Trace(path, ("maths", "code"), "0123456789ab", texts=True) as trace:
        for number in range(20):
            text = f"{who} {opening} {number} " + who * 20000
            trace.record([text], Prompts.pad([[1]], [text]), decided, False)
"""


@pytest.mark.slow
def test_two_processes_may_write_to_one_trace_and_every_row_of_both_is_whole(path):
    """Opening cuts off a torn line, and a row of several pages looks torn while another process writes it."""
    command = [sys.executable, "-c", WRITE, str(path)]
    pipe = subprocess.PIPE
    writers = [subprocess.Popen([*command, who], stdin=pipe, stdout=pipe, text=True) for who in "ab"]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=60)
        assert writer.returncode == 0
    found = [one.prompt.split(maxsplit=3) for one in read_trace(path)]
    for who in "ab":
        mine = [(int(opening), int(number)) for name, opening, number, _ in found if name == who]
        assert mine == [(opening, number) for opening in range(20) for number in range(20)]
    assert all(text == name * 20000 for name, *_, text in found)


# --- what is refused --------------------------------------------------------------------------------------------------

LONE = "\ud800"
DEFECTS = [
    ("time", {"time": "yesterday"}, "wrong value; expected ISO 8601 in UTC"),
    ("time", {"time": "2026-01-31T12:00:00.123"}, "ISO 8601 in UTC"),
    ("time", {"time": "2026-01-31T12:00:00.123+02:00"}, "ISO 8601 in UTC"),
    ("time", {"time": 1769860800}, "ISO 8601 in UTC"),
    ("prompt", {"prompt": ""}, "a text that is not empty"),
    ("prompt", {"prompt": 7}, "a text that is not empty"),
    ("prompt", {"prompt": LONE}, "Unicode text"),
    ("prompt", {"prompt": ...}, "is missing"),
    ("prompt_sha256", {"prompt_sha256": "0" * 64}, "one of prompt, messages, prompt_sha256"),
    ("prompt_sha256", {"prompt": ..., "prompt_sha256": "F" * 64}, "64 hexadecimal digits"),
    ("messages", {"messages": TALK["messages"]}, "one of prompt, messages, prompt_sha256"),
    ("messages", {"prompt": ..., "messages": []}, "one message or more"),
    ("messages", {"prompt": ..., "messages": "hello"}, "a list of {role, content}"),
    ("messages[0].role", {"prompt": ..., "messages": [{"role": "owl", "content": "hoo"}]}, "unknown role"),
    ("messages[0].content", {"prompt": ..., "messages": [{"role": "user", "content": LONE}]}, "half a character"),
    ("tokens", {"tokens": 0}, "a count from 1"),
    ("tokens", {"tokens": 2.0}, "a count from 1"),
    ("tokens", {"tokens": True}, "a count from 1"),
    ("tokens", {"tokens": ...}, "is missing"),
    ("probabilities", {"probabilities": [0.5, 0.5]}, "null or {name: probability}"),
    ("probabilities", {"probabilities": {"maths": 1.5, "code": -0.5}}, "null or {name: probability}"),
    ("probabilities", {"probabilities": {"maths": "1", "code": 0}}, "null or {name: probability}"),
    ("probabilities", {"probabilities": {"maths": 1.0}}, "those of maths, code"),
    ("probabilities", {"probabilities": {"maths": 0.5, "code": 0.4}}, "probabilities that sum to 1"),
    ("probabilities", {"forced": True}, "null, as the router did not decide"),
    ("weights", {"weights": {}}, "{name: weight from 0 to 1}"),
    ("weights", {"weights": {"maths": True}}, "{name: weight from 0 to 1}"),
    ("weights", {"weights": {"../maths": 1.0}}, "not a name for an expert"),
    ("weights", {"weights": {"con": 1.0}}, "Windows reserves this name"),
    ("weights", {"weights": {"base": 1.0}}, "experts only"),
    ("weights", {"weights": {"maths": 0.8, "code": 0.8}}, "weights that sum to at most 1"),
    ("chosen", {"chosen": 0}, "a name"),
    ("chosen", {"chosen": "moths"}, "maths, code or base; got 'moths'"),
    ("chosen", {"chosen": "code"}, "the expert of largest weight"),
    ("chosen", {"chosen": "base"}, "the expert of largest weight, or the base if all are 0"),
    ("chosen", {"weights": {"maths": 0, "code": 0}}, "the expert of largest weight"),
    ("forced", {"forced": 0}, "true or false"),
    ("mixture", {"mixture": "0123"}, "12 hexadecimal digits"),
    ("correction", {"correction": 1}, "null or a name"),
    ("correction", {"correction": "no such\x1b[2J"}, "not a name for an expert"),
    ("correction", {"correction": ...}, "is missing"),
    ("corection", {"corection": "code"}, "unknown key; did you mean 'correction'?"),
    (repr("\x1b[2J"), {"\x1b[2J": 1}, "unknown key"),
]


@pytest.mark.parametrize(("field", "change", "said"), DEFECTS, ids=[f"{n} {d[0]}" for n, d in enumerate(DEFECTS)])
def test_a_defective_row_is_named_by_its_line_and_field(path, field, change, said):
    row = {key: value for key, value in (ROW | change).items() if value is not ...}
    path.parent.mkdir()
    path.write_text("".join(json.dumps(one) + "\n" for one in (ROW, row, ROW)))
    decisions = read_trace(path)
    assert next(decisions).chosen == "maths"
    with pytest.raises(DataError, match=re.escape(f"{path}:2: {field}: ")) as caught:
        next(decisions)
    assert said in str(caught.value) and "\x1b" not in str(caught.value)


@pytest.mark.parametrize("line", ["", "[1]", '{"time": 1, "time": 2}', '{"time": NaN}'])
def test_a_line_that_is_no_row_is_named(path, line):
    path.parent.mkdir()
    path.write_text(f"{json.dumps(ROW)}\n{line}\n")
    with pytest.raises(MoesaicError, match=f"{path}:2: not usable as JSON"):
        list(read_trace(path))


# --- what it comes to -------------------------------------------------------------------------------------------------


def test_a_summary_by_hand(path):
    to_code = ROW | {"weights": {"maths": 0.4, "code": 0.5}, "chosen": "code", "time": "2026-01-30T00:00:00Z"}
    forced = ROW | {"forced": True, "probabilities": None, "mixture": "f" * 12, "correction": "code"}
    rows = [ROW | {"correction": "maths"}, to_code | {"correction": "poems"}, ABSTAINED, HASHED, forced]
    assert summary(written(path, *rows)) == {
        "rows": 5,
        "forced": 1,
        "texts": 4,
        "mixtures": {MIXTURE: 4, "f" * 12: 1},
        "first": "2026-01-30T00:00:00.000+00:00",
        "last": "2026-01-31T12:00:00.123+00:00",
        "utilisation": {"maths": 0.5, "code": 0.25, "base": 0.25},
        "abstained": 1,
        "confidence": pytest.approx((0.75 + 0.25 + 0.75) / 3),
        "corrected": 2,
        "accuracy": 0.5,
        "unknown": ["poems"],
    }


def test_a_summary_of_nothing_claims_nothing(path):
    empty = summary([])
    assert (empty["rows"], empty["first"], empty["confidence"], empty["accuracy"]) == (0, None, None, None)
    only_forced = summary(written(path, ROW | {"forced": True, "probabilities": None}))
    assert only_forced["utilisation"] == {"maths": None, "code": None}
    assert json.loads(json.dumps(only_forced)) == only_forced


# --- rows of a server -------------------------------------------------------------------------------------------------

SERVED = ROW | {"id": "dec_1", "reason": "router"}
LATER = {"time": "2026-01-31T12:00:01.000Z", "of": "dec_1"}


def test_what_later_rows_say_is_joined_to_their_decision_and_the_last_one_counts(path):
    other = SERVED | {"id": "dec_2", "reason": "held"}
    ended = LATER | {"tokens_made": 3, "finish": "aborted"}
    one, two = written(
        path,
        SERVED,
        LATER | {"correction": "maths"},
        other,
        ended,
        LATER | {"correction": "code"},
        LATER | {"of": "dec_gone", "tokens_made": 9, "finish": "stop"},
    )
    assert (one.id, one.reason, one.tokens_made, one.finish, one.correction) == (
        "dec_1",
        "router",
        3,
        "aborted",
        "code",
    )
    assert (two.id, two.reason, two.tokens_made, two.finish, two.correction) == ("dec_2", "held", None, None, None)
    assert [line for line, _ in numbered(path)] == [1, 3]
    (revoked,) = written(path, SERVED | {"correction": "maths"}, LATER | {"correction": None})
    assert revoked.correction is None
    (edited,) = written(path, SERVED | {"correction": "maths"}, ended)
    assert edited.correction == "maths", "a correction that was edited into the row stands"


def test_a_trace_of_a_server_is_written_and_read_again(mixture, path):
    with Trace(path, NAMES, MIXTURE) as trace:
        (asked,) = PROMPTS[:1]
        encoded = Engine(mixture, ByteTokenizer()).read([Request(prompt=asked)])
        trace.record([asked], encoded.prompts, mixture.route(encoded.prompts), False, id="dec_1", reason="router")
        trace.ended("dec_1", 7, "stop")
        trace.correct("dec_1", "code")
        trace.correct("dec_1", None)
    (one,) = read_trace(path)
    assert (one.id, one.reason, one.tokens_made, one.finish, one.correction) == ("dec_1", "router", 7, "stop", None)
    assert row_of(one).keys() == {*HASHED, "id", "reason"}
    with Trace(path, NAMES, MIXTURE):
        pass  # a trace that ends with a later row is continued


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (LATER, "of: wrong keys; expected time, of, tokens_made, finish or time, of, correction"),
        (LATER | {"correction": "code", "tokens_made": 1, "finish": "stop"}, "of: wrong keys"),
        (LATER | {"tokens_made": -1, "finish": "stop"}, "tokens_made: wrong value; expected a count from 0"),
        (LATER | {"tokens_made": True, "finish": "stop"}, "tokens_made: wrong value"),
        (LATER | {"tokens_made": 1, "finish": ""}, "finish: wrong value; expected a word"),
        (LATER | {"correction": 1}, "correction: wrong value"),
        (LATER | {"correction": "../code"}, "correction: not a name"),
        (LATER | {"of": 3, "correction": None}, "of: wrong value"),
        (LATER | {"time": "now", "correction": None}, "time: wrong value"),
        (SERVED | {"id": 3}, "id: wrong value; expected a word"),
        (SERVED | {"reason": ""}, "reason: wrong value; expected a word"),
    ],
)
def test_a_malformed_row_of_a_server_is_named(row, said, path):
    with pytest.raises(DataError, match=rf"trace\.jsonl:2: {said}"):
        written(path, SERVED, row)
