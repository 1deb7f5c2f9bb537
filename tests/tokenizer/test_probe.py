"""Is every hostile tokenizer refused by name when it is read, soon, in little memory and off the terminal?"""

import base64
import json
import os
import time
from pathlib import Path

import pytest

from moesaic.errors import WeightsError
from moesaic.tokenizer import Special, Tokenizer, guard, probe
from moesaic.tokenizer.guard import Limits, guarded

STEPS = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
MODEL = {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}
FRAME = {"single": [{"SpecialToken": {"id": "X", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}], "pair": []}
WORDS = {"type": "WordPiece", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": {"a": 0}}


def written(**parts) -> bytes:
    return json.dumps({"version": "1.0", "added_tokens": [], **STEPS, "model": MODEL, **parts}).encode()


def bomb(size: int) -> dict:
    """A normaliser that makes a text `size` times as long, again and again."""
    step = {"type": "Replace", "pattern": {"Regex": "."}, "content": "a" * size}
    return {"type": "Sequence", "normalizers": [step] * 6}


def rare(**step) -> dict:
    """Steps that double one rare text again and again."""
    return {"type": "Sequence", "normalizers": [{"type": "Replace", **step}] * 40}


DOUBLING = {"pattern": {"String": "Q~"}, "content": "Q~Q~"}
CHARSMAP = base64.b64encode((4).to_bytes(4, "little") + b"\0\0\0\0" + b"a" * 300 + b"\0").decode()
SPLIT = {"type": "Split", "pattern": {"String": "Q"}, "behavior": "Isolated", "invert": False}
MARK = {"type": "Metaspace", "prepend_scheme": "always", "split": False}

HOSTILE = {
    "a rare text that doubles": written(normalizer=rare(**DOUBLING)),
    "a rare pattern that doubles": written(normalizer=rare(pattern={"Regex": "Q~"}, content="Q~")),
    "rare texts that double in steps of steps": written(
        normalizer={"type": "Sequence", "normalizers": [rare(**DOUBLING)] * 2}
    ),
    "a rare character that is decomposed again and again": written(
        normalizer={
            "type": "Sequence",
            "normalizers": [
                {"type": "Replace", "pattern": {"String": "\u0635"}, "content": "\ufdfa"},
                {"type": "NFKD"},
            ]
            * 20,
        }
    ),
    "a long text for a rare one": written(
        normalizer={"type": "Replace", "pattern": {"String": "Q~"}, "content": "a" * 10_000}
    ),
    "a long text for a rare character": written(normalizer={"type": "Precompiled", "precompiled_charsmap": CHARSMAP}),
    "marks between marks": written(
        pre_tokenizer={
            "type": "Sequence",
            "pretokenizers": [one for mark in "abcdefghij" for one in (SPLIT, {**MARK, "replacement": mark})],
        }
    ),
    "a rare text that doubles when it is decoded": written(
        decoder={"type": "Sequence", "decoders": [{"type": "Fuse"}, *rare(**DOUBLING)["normalizers"]]}
    ),
    "two tokens with one id": written(model={**MODEL, "vocab": {"a": 0, "b": 0, "c": 1}}),
    "a merge of unknown tokens": written(model={**MODEL, "merges": [["a", "c"]]}),
    "a character map that is none": written(
        normalizer={"type": "Precompiled", "precompiled_charsmap": base64.b64encode(b"\xff\xff\xff\x7f123").decode()}
    ),
    "a frame of unknown tokens": written(post_processor={"type": "TemplateProcessing", **FRAME, "special_tokens": {}}),
    "a strip of more than there is": written(decoder={"type": "Strip", "content": "a", "start": 10, "stop": 10}),
    "pieces of no length": written(pre_tokenizer={"type": "FixedLength", "length": 0}),
    "no score for the unknown": written(model={"type": "Unigram", "unk_id": None, "vocab": [["a", 0.0]]}),
    "no pieces": written(model={"type": "Unigram", "unk_id": None, "vocab": []}),
    "a missing unknown token": written(model={**WORDS, "unk_token": "[UNK]"}),
    "no vocabulary": written(model={**MODEL, "vocab": {}}),
    "an id far away": written(model={**MODEL, "vocab": {"a": 0, "b": 4_000_000_000}}),
    "a text that grows without end": written(normalizer=bomb(100)),
    "a key twice": written()[:-1] + b', "version": "1.0"}',
    "not a number": written(model={**MODEL, "dropout": float("nan")}),
    "nested too deeply": b'{"a":' * 100_000,
    "cut off": written()[:-30],
    "nothing": b"",
    "another object": b"{}",
    "a list": b"[1]",
    "not UTF-8": b"\xff\xfe",
    "only a model's type": b'{"model": {"type": "BPE"}}',
}


PRECOMPILED = {"type": "Precompiled", "precompiled_charsmap": "BAAAAAAAAABhYWEA"}
SPACES = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}


@pytest.mark.parametrize(
    "steps",
    [
        [
            {"type": "Replace", "pattern": {"String": "``"}, "content": '"'},
            {"type": "NFKD"},
            {"type": "StripAccents"},
            {"type": "Lowercase"},
            PRECOMPILED,
            SPACES,
        ],
        [
            {"type": "Prepend", "prepend": "\u2581"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        ],
        [{"type": "NFKC"}] * 5,
        [PRECOMPILED, {"type": "NFKC"}, SPACES],
    ],
    ids=["ALBERT", "Llama 2", "forms again", "T5"],
)
def test_the_steps_of_published_tokenizers_do_not_grow(steps):
    times = probe.growth({"type": "Sequence", "normalizers": steps})
    assert 1 <= times <= probe.GROWTH / 2


@pytest.mark.usefixtures("hang_limit")
@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_file_is_refused_by_name_when_it_is_read(data, tmp_path, capfd):
    (tmp_path / "tokenizer.json").write_bytes(data)
    with pytest.raises(WeightsError, match=r"tokenizer\.json: not a readable tokenizer: .") as caught:
        Tokenizer.load(tmp_path, 0)
    assert len(str(caught.value)) < 700 and capfd.readouterr() == ("", ""), "panics stay off the terminal"


def test_what_drops_text_without_a_trace_is_said(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(written())
    with pytest.warns(
        UserWarning, match=r"tokenizer\.json: the tokenizer silently drops some characters, such as A Z z 0"
    ):
        tokenizer = Tokenizer.load(tmp_path, 0)
    assert tokenizer.encode("aZb") == [0, 1]


def test_a_sound_file_is_asked_once_and_a_changed_one_again(tmp_path, monkeypatch):
    tokenizer = Tokenizer.train(["to be asked once"], 262)
    asked = []
    monkeypatch.setattr(probe, "guarded", lambda *given: asked.append(given) or guarded(*given))
    for vocabulary in (tokenizer, tokenizer, Tokenizer.train(["to be asked again, again"], 263), tokenizer):
        vocabulary.save(tmp_path)
        Tokenizer.load(tmp_path, 0)
    assert len(asked) == 2


def test_a_panic_in_the_middle_of_work_is_an_error_of_ours():
    inner = Tokenizer.train(["x"], 258).inner
    from tokenizers import decoders

    inner.decoder = decoders.Strip("a", 10, 10)
    with pytest.raises(WeightsError, match="the tokenizer fails on a text: .*out of bounds"):
        Tokenizer(inner, Special(0)).decode(inner.encode("a").ids)


# --- the guarded process: these are its work --------------------------------------------------------------------------


def echo(given: bytes) -> bytes:
    return given[::-1]


def spin(given: bytes) -> bytes:
    while True:
        pass


def hoard(given: bytes) -> bytes:
    return bytes(1 << 30)


def scream(given: bytes) -> bytes:
    os.write(2, b"aaah")
    raise KeyError("what it was")


def crash(given: bytes) -> bytes:
    os.abort()


def exits(given: bytes) -> bytes:
    os._exit(0 if given else 9)


@pytest.fixture(autouse=True)
def reachable(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)


def test_what_is_done_apart_is_answered():
    assert guarded(echo, b"abc" * 100_000, Limits(5, 64)) == b"cba" * 100_000


@pytest.mark.parametrize(
    ("work", "says"),
    [
        (spin, "it takes more than 1 s"),
        (hoard, "it takes more than 64 MiB"),
        (scream, "what it was"),
        (crash, "its reader crashed \\(SIGABRT\\)"),
        (exits, "its reader crashed \\(9\\)"),
    ],
)
@pytest.mark.usefixtures("hang_limit")
def test_what_takes_too_much_or_fails_is_named_and_nothing_is_shown(work, says, capfd, monkeypatch):
    monkeypatch.setattr(guard, "_PATIENCE", 1000)  # the clock alone would come far too late
    with pytest.raises(ValueError, match=says):
        guarded(work, b"", Limits(1, 64))
    assert capfd.readouterr() == ("", "")


def test_what_sleeps_is_ended_by_the_clock(monkeypatch):
    monkeypatch.setattr(guard, "_PATIENCE", 0.2)
    with pytest.raises(ValueError, match="it takes more than 2 s"):
        guarded(nap, b"", Limits(2, 64))


def nap(given: bytes) -> bytes:
    time.sleep(60)
    return b""
