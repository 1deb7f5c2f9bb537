"""Traffic from end to end: generated with a trace, inspected, corrected by hand, and replayed with another router."""

import hashlib
import io
import json
from pathlib import Path

import pytest

from moesaic.generate.trace import read_trace

KEYWORDS = "runs/small/controls/routers/keyword-text"
PROMPTS = ["one two", "wren owl", "three wren", "finch hawk crow", "nothing known"]


@pytest.fixture
def trace(finished, monkeypatch, moesaic, tmp_path) -> Path:
    """What `generate` recorded of the prompts, with their texts."""
    monkeypatch.chdir(finished[0])
    path = tmp_path / "traffic.jsonl"
    assert moesaic("generate", "runs/small", *PROMPTS, "--max-new-tokens", 1, "--trace", path, "--trace-texts")[0] == 0
    return path


def corrected(path: Path, *corrections: str | None) -> None:
    """What somebody who knows better does with an editor."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row, correction in zip(rows, corrections, strict=False):
        row["correction"] = correction
    path.write_text("\n".join(map(json.dumps, rows)))


def test_every_prompt_that_is_generated_from_leaves_a_row(trace, moesaic):
    manifest = json.loads(Path("runs/small/mixture/manifest.json").read_text())
    decisions = list(read_trace(trace))
    assert [one.prompt for one in decisions] == PROMPTS
    assert {one.mixture for one in decisions} == {manifest["digest"][:12]}
    out = moesaic("generate", "runs/small", *PROMPTS, "--max-new-tokens", 1, "--json")[1]
    assert [one.chosen for one in decisions] == [json.loads(line)["chosen"] for line in out.splitlines()]


def test_prompts_of_stdin_and_of_a_terminal_are_recorded_too(trace, moesaic, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"one\ntwo\n")))
    moesaic("generate", "runs/small", "--max-new-tokens", 1, "--trace", trace, "--trace-texts")
    monkeypatch.setenv("FORCE_COLOR", "1")
    moesaic("generate", "runs/small", "three", "--max-new-tokens", 1, "--trace", trace, "--trace-texts")
    assert [one.prompt for one in read_trace(trace)] == [*PROMPTS, "one", "two", "three"]


def test_texts_are_not_kept_unless_asked_for(trace, moesaic, tmp_path):
    path = tmp_path / "hashed.jsonl"
    moesaic("generate", "runs/small", "wren owl", "--max-new-tokens", 1, "--trace", path)
    (one,) = read_trace(path)
    assert one.prompt_sha256 == hashlib.sha256(b"wren owl").hexdigest() and "wren" not in path.read_text()
    code, _, err = moesaic("generate", "runs/small", "x", "--trace-texts")
    assert code == 2 and "no trace to write texts to" in err
    code, _, err = moesaic("replay", path, "--router", KEYWORDS)
    assert code == 3 and "hashed.jsonl: nothing to replay: 1 without text" in err and "--trace-texts" in err


def test_a_prompt_that_is_refused_leaves_no_row(trace, moesaic):
    before = trace.read_bytes()
    assert moesaic("generate", "runs/small", "one " * 300, "--trace", trace)[0] == 2
    assert moesaic("generate", "runs/small", "one", "--expert", "brids", "--trace", trace)[0] == 2
    assert trace.read_bytes() == before


def test_inspect_recognises_a_trace(trace, moesaic):
    corrected(trace, "birds", "birds", "birds", "birds", "poems")
    moesaic("generate", "runs/small", "owl", "--max-new-tokens", 1, "--trace", trace, "--expert", "base")
    raw = json.loads(moesaic("inspect", trace, "--json")[1])
    assert (raw["kind"], raw["rows"], raw["texts"], raw["forced"], raw["corrected"]) == ("trace", 6, 5, 1, 5)
    code, out, _ = moesaic("inspect", trace)
    told = dict(line.strip().split(None, 1) for line in out.splitlines()[1:])
    assert code == 0 and out.startswith("trace\n")
    assert told["rows"] == "6, the prompt's text in 5 of them" and told["forced"].startswith("1: ")
    assert told["accuracy"] == f"{raw['accuracy']:.1%} of the corrected" and told["unknown"].startswith("poems: ")
    assert told["utilisation"] == ", ".join(f"{name} {share:.1%}" for name, share in raw["utilisation"].items())


def test_inspect_says_what_is_no_trace_and_that_a_trace_routes_nothing(trace, moesaic, tmp_path):
    code, _, err = moesaic("inspect", "sums-test.jsonl")
    assert code == 3 and "sums-test.jsonl:1: response: unknown key; a routing trace is what" in err
    code, _, err = moesaic("inspect", trace, "--text", "owl")
    assert code == 2 and "text: a trace routes no text" in err
    (tmp_path / "empty.jsonl").touch()
    assert moesaic("inspect", tmp_path / "empty.jsonl")[:2] == (0, "trace\n  rows  0, the prompt's text in 0 of them\n")


def test_replay_with_the_same_router_agrees_wholly(trace, moesaic):
    code, out, _ = moesaic("replay", trace, "--router", "runs/small")
    assert code == 0 and "agreement: 100.0%, the same expert for 5 of 5 rows" in out
    assert "no row has a correction" in out and "differ" not in out


def test_replay_with_another_router_says_who_was_right_and_where_they_differ(trace, moesaic):
    corrected(trace, "sums", "birds", None, "birds", "base")
    raw = json.loads(moesaic("replay", trace, "--router", KEYWORDS, "--json")[1])
    lines = moesaic("replay", trace, "--router", KEYWORDS)[1].splitlines()
    assert lines[0] == f"5 of 5 rows of {trace}, replayed with {KEYWORDS}"
    assert raw["corrected"]["replayed"] == 1, "keywords know the birds, and when they know nothing"
    judged = lines.index("accuracy on 4 corrected rows of 4 different prompts:")
    assert lines[judged + 1].startswith(f"  recorded {raw['corrected']['recorded']:.1%}, replayed 100.0%, difference +")
    assert "fewer than 10 prompts" in lines[judged + 2]
    for one in raw["differing"]:
        at = next(n for n, line in enumerate(lines) if line.startswith(f"line {one['line']}: "))
        assert f": {one['recorded']}, replayed {one['replayed']}" in lines[at] and lines[at + 1] == f"  {one['prompt']}"
    assert lines[-2].startswith("line 5: ") and lines[-2].endswith(", replayed base, should have been base")


def test_of_many_differences_the_first_ten_are_shown_and_nothing_that_a_terminal_obeys(trace, moesaic):
    row = json.loads(trace.read_text().splitlines()[-1])
    row["prompt"] = "nothing\x1b[2J " + "long " * 20
    trace.write_text((json.dumps(row) + "\n") * 12)
    out = moesaic("replay", trace, "--router", KEYWORDS)[1]
    assert out.count("replayed base") == 10 and "\nWhere they differ, the first 10 of 12\n" in out
    assert "\x1b" not in out and max(map(len, out.splitlines()[1:])) <= 100


def test_replay_names_what_it_cannot_find(trace, moesaic, tmp_path):
    assert "missing option '--router'" in moesaic("replay", trace)[2].lower()
    code, _, err = moesaic("replay", trace, "--router", tmp_path)
    assert code == 4 and "no router here" in err
    code, _, err = moesaic("replay", tmp_path / "no.jsonl", "--router", KEYWORDS)
    assert code == 3 and "no such file" in err
    trace.write_text(trace.read_text() + '{"time": "now"}\n')
    code, _, err = moesaic("replay", trace, "--router", KEYWORDS)
    assert code == 3 and f"{trace}:6: " in err
