"""Prompts as shells and editors hand them over, and answers that programs read."""

import io
import json
import os
import subprocess
import sys

import pytest
import torch

import moesaic as package
from moesaic.artefacts.adapter import save_expert
from moesaic.cli.generating import conversation, lines, show_decision
from moesaic.compose.mixture import save_mixture
from moesaic.errors import DataError
from moesaic.generate.request import RoutingReport
from moesaic.model.classifier import Head, Shape
from moesaic.testing import toy_expert
from moesaic.tokenizer import Message

MARK = "\ufeff"
TALK = [{"role": "user", "content": "zwölf"}]
TURNS = (Message("user", "zwölf"),)


@pytest.fixture
def stdin(monkeypatch):
    def fill(content: bytes) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))

    return fill


def test_a_mark_at_the_beginning_of_stdin_is_no_part_of_the_first_prompt(stdin):
    stdin(f"{MARK}one\r\n{MARK}two\nzwölf".encode())
    assert [*lines()] == [(1, "one"), (2, f"{MARK}two"), (3, "zwölf")], "elsewhere it is a character"


@pytest.mark.parametrize("mark", ["", MARK])
def test_a_mark_before_messages_is_no_part_of_them(stdin, tmp_path, mark):
    content = (mark + json.dumps(TALK, ensure_ascii=False)).encode()
    (tmp_path / "talk.json").write_bytes(content)
    stdin(content)
    assert conversation(str(tmp_path / "talk.json")) == conversation("-") == (Message("user", "zwölf"),)


FOREIGN = {
    "UTF-16": ("utf-16", "UTF-16", "iconv -f UTF-16 -t UTF-8"),
    "UTF-16 without a mark": ("utf-16-le", "NUL bytes", "iconv -f UTF-16LE -t UTF-8"),
}


@pytest.mark.parametrize(("encoding", "got", "hint"), FOREIGN.values(), ids=FOREIGN.keys())
def test_utf_16_is_refused_with_the_line_that_converts_it(stdin, tmp_path, encoding, got, hint):
    stdin("one\ntwo\n".encode(encoding))
    with pytest.raises(DataError, match=f"^<stdin>:1: not text; expected UTF-8; got {got}; convert it: {hint}"):
        next(lines())
    (tmp_path / "talk.json").write_bytes(json.dumps(TALK).encode(encoding))
    with pytest.raises(DataError, match=f"talk.json: not text; expected UTF-8; got {got}; convert it: {hint}"):
        conversation(str(tmp_path / "talk.json"))


def test_another_encoding_is_refused_with_its_place(stdin):
    stdin("one\nzwölf\n".encode("latin-1"))
    with pytest.raises(DataError, match="^<stdin>:2: not UTF-8: byte 0xf6 at column 3; .*iconv -f CP1252 -t UTF-8"):
        [*lines()]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "cp1252"])
def test_json_is_utf_8_whatever_the_locale(tmp_path, encoding):
    def printed(*options: str) -> bytes:
        command = [sys.executable, "-m", "moesaic", "generate", "shipped:tiny", "--max-new-tokens", "1", *options]
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        given = "naïve 猫\n".encode()
        done = subprocess.run(command, cwd=tmp_path, env=environment, input=given, capture_output=True, check=True)
        return done.stdout

    assert json.loads(printed("--json").decode("utf-8"))["prompt"] == "naïve 猫"
    assert printed().startswith("> naïve 猫\n".encode(encoding, "replace")), "people read it in their terminal's"


# --- decisions alone --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixture(parts, tmp_path_factory):
    """Two experts, once as writers and once with heads: the folders `writes` and `labels`."""
    folder, labels = tmp_path_factory.mktemp("routed"), {"one": ("good", "bad"), "two": ("yes", "no")}
    for seed, name in enumerate(labels):
        (folder / name).mkdir()
        head = Head.fresh(Shape(labels[name]), parts.decoder.config.hidden_size, torch.Generator().manual_seed(seed))
        facts = {"name": name, "head": {"pool": "last", "family": "decoder", "trained": True}}
        save_expert(folder / name, toy_expert(parts.decoder, seed), parts.fingerprint, facts, head)
    heads = {"labels": {name: list(some) for name, some in labels.items()}, "pool": "last", "length": 32}
    for site, facts in {"writes": {}, "labels": heads}.items():
        (folder / site).mkdir()
        where = {name: parts.folder / name if site == "writes" else folder / name for name in parts.experts}
        save_mixture(folder / site, parts.folder / "base", where, parts.folder / "router", facts)
    return folder


@pytest.mark.parametrize("site", ["writes", "labels"])
def test_route_says_what_the_mixture_decides_about_each_prompt_and_each_line(mixture, site, moesaic, stdin):
    prompts = ["one two", "-5 + 3", "zwölf 猫"]
    decided = dict(zip(prompts, package.load(mixture / site).route(prompts), strict=True))
    code, out, _ = moesaic("route", mixture / site, *decided, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and rows == [
        {"prompt": prompt, "chosen": one.chosen, "weights": one.weights, "probabilities": one.probabilities}
        for prompt, one in decided.items()
    ]
    stdin("\n".join(decided).encode())
    code, out, _ = moesaic("route", mixture / site, "--json")
    assert code == 0 and [json.loads(line)["prompt"] for line in out.splitlines()] == [*decided]
    chosen = decided["one two"].chosen
    code, out, _ = moesaic("route", mixture / site, "one two")
    assert out.startswith(f"> one two\n{chosen} ({chosen} {decided['one two'].probabilities[chosen]:.0%}")


def test_route_reads_a_conversation(mixture, moesaic, tmp_path):
    (tmp_path / "talk.json").write_text(json.dumps(TALK))
    code, out, _ = moesaic("route", mixture / "writes", "--messages", tmp_path / "talk.json", "--json")
    assert code == 0 and json.loads(out)["messages"] == TALK
    code, _, err = moesaic("route", mixture / "writes", "hi", "--messages", tmp_path / "talk.json")
    assert code == 2 and "not both" in err


def test_nothing_routes_in_a_model_alone(moesaic, parts):
    for place, options in (("shipped:tiny", ["--json"]), (parts.folder / "one", [])):
        code, _, err = moesaic("route", place, "Once", *options)
        assert code == 5 and "nothing routes here: this is one model" in err


def test_an_error_of_a_line_names_it(mixture, stdin, moesaic):
    stdin(("one\n" + "two " * 4000).encode())
    code, _, err = moesaic("route", mixture / "writes")
    assert code == 2 and "<stdin>:2: " in err and "exceed the model's context" in err


def test_why_the_base_answers_and_how_experts_share_is_said(capsys):
    show_decision(RoutingReport({"a": 0.0, "b": 0.0}, "base", {"a": 0.25, "b": 0.0, "base": 0.75}), "hi", False)
    show_decision(RoutingReport({"a": 0.75, "b": 0.25}, "a", {"a": 0.75, "b": 0.25, "base": 0.0}), TURNS, False)
    assert capsys.readouterr().out == (
        "> hi\nbase (base 75%, a 25%): the router abstained\n> zwölf\na (a 75%, b 25%)\nweights: a 75%, b 25%\n"
    )
