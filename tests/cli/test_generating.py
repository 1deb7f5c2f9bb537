"""Prompts as shells and editors hand them over, and answers that programs read."""

import io
import json
import os
import subprocess
import sys

import pytest

from moesaic.cli.generating import conversation, lines
from moesaic.errors import DataError
from moesaic.tokenizer import Message

MARK = "\ufeff"
TALK = [{"role": "user", "content": "zwölf"}]


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
