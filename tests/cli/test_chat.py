"""Are conversations answered at a terminal and through a pipe, and does Ctrl-C stop an answer and not the chat?"""

import fcntl
import io
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

import moesaic as package
from moesaic.cli.chat import NOTHING, Action, Chat, Pending, Talk, recent, take, talk_to
from moesaic.errors import MoesaicError, RecipeError
from moesaic.generate.trace import read_trace, summary
from moesaic.tokenizer import Message

# --- lines -> actions -------------------------------------------------------------------------------------------------

READ = {
    "a message": (["hi there"], [Action("say", "hi there")]),
    "each line is one": (["one", "", "  ", "two"], [Action("say", "one"), Action("say", "two")]),
    "a backslash goes on": (["one\\", "", "two"], [Action("say", "one\n"), Action("say", "two")]),
    "twice": (["one\\", "two\\", "three"], [Action("say", "one\ntwo\nthree")]),
    "an escaped backslash does not": (["one\\\\", "two"], [Action("say", "one\\\\"), Action("say", "two")]),
    "a block": (["```", "x \\", "", "/new", "```"], [Action("say", "```\nx \\\n\n/new\n```")]),
    "a block behind words": (["Why? \\", "```py", "x", "```"], [Action("say", "Why? \n```py\nx\n```")]),
    "a block within a line": (["Is ```x``` it?"], [Action("say", "Is ```x``` it?")]),
    "pasted lines": (["one\ntwo"], [Action("say", "one\ntwo")]),
    "commands": (["/force maths", "/compare", "/new "], [Action("force", "maths"), Action("compare"), Action("new")]),
    "the router again": (["/force"], [Action("force")]),
    "a path": (["/etc/hosts?", "/ what"], [Action("say", "/etc/hosts?"), Action("say", "/ what")]),
    "anything": (["/say /help", "zwölf 猫"], [Action("say", "/help"), Action("say", "zwölf 猫")]),
}


@pytest.mark.parametrize(("lines", "actions"), READ.values(), ids=READ.keys())
def test_lines_are_messages_and_commands(lines, actions):
    pending, found = NOTHING, []
    for line in lines:
        pending, action = take(pending, line)
        found += [action] if action else []
    assert found == actions and pending == NOTHING


def test_a_message_without_an_end_is_pending():
    assert take(NOTHING, "one\\") == (Pending(("one",)), None)
    assert take(NOTHING, "```") == (Pending(("```",), fenced=True), None)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/frce maths", "/frce: no such command; did you mean 'force'? /help lists"),
        ("/x", "/x: no such command; /help lists"),
        ("/new maths", "/new: takes nothing: maths"),
        ("/wrong", "/wrong: lacks its argument; expected /wrong EXPERT"),
    ],
)
def test_a_misspelt_command_is_refused_with_the_nearest(line, said):
    with pytest.raises(RecipeError, match="^" + said.replace("?", "\\?")):
        take(NOTHING, line)


def test_of_a_conversation_that_does_not_fit_the_oldest_turns_go():
    talk = tuple(Message(role, word) for role, word in zip(["user", "assistant"] * 3, "abcdef", strict=True))[:5]
    fits = [recent(talk, lambda some, most=most: len(some) <= most) for most in (5, 4, 3, 2, 0)]
    assert fits == [talk, talk[2:], talk[2:], talk[4:], talk[4:]]


# --- actions -> answers -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixture(finished):
    folder, (code, _, err) = finished
    assert code == 0, err
    return folder / "runs" / "small"


@pytest.fixture
def chat(mixture, tmp_path):
    with package.load(mixture, trace=tmp_path / "traffic.jsonl") as model:
        yield Chat(model, {"max_new_tokens": 3, "stop": model.turn_stops}, patient=True)


def said(chat: Chat, *lines: str) -> Talk:
    talk = Talk()
    for line in lines:
        _, action = take(NOTHING, line)
        talk = chat.do(talk, action)
    return talk


def test_an_answer_continues_the_conversation_and_says_who_wrote_it(chat, capsys):
    talk = said(chat, "one two", "wren owl")
    out, err = capsys.readouterr()
    first = chat.model.generate([{"role": "user", "content": "one two"}], **chat.settings)
    history = [Message("user", "one two"), Message("assistant", first.text.strip()), Message("user", "wren owl")]
    second = chat.model.generate(history, **chat.settings)
    assert out == f"{first.text}\n{second.text}\n"
    assert talk.history == (*history, Message("assistant", second.text.strip()))
    chosen, share = first.routing.chosen, first.routing.probabilities[first.routing.chosen]
    assert err.startswith(f"[{chosen} ({chosen} {share:.0%}, ") and "stopped at the token limit after 3 tokens]" in err
    assert said(chat, "one two", "/new").history == ()


def test_an_expert_answers_until_it_is_told_off(chat, capsys):
    talk = said(chat, "/force birds", "one two")
    assert talk.last and talk.last.routing.chosen == "birds" and talk.last.forced
    assert "[birds, forced; " in capsys.readouterr().err
    for off in ("/force off", "/force"):
        assert not said(chat, "/force birds", off, "one two").last.forced
    with pytest.raises(RecipeError, match=r"no such expert; expected sums or birds or base; got brids; did you mean"):
        said(chat, "/force brids")


def test_a_comparison_asks_the_base_and_every_expert_the_same(chat, capsys):
    talk = said(chat, "one two", "wren owl")
    capsys.readouterr()
    assert said_after(chat, talk, "/compare") == talk
    out, err = capsys.readouterr()
    asked = talk.last.asked
    texts = [chat.model.generate(asked, expert=name, **chat.settings).text for name in ("base", "sums", "birds")]
    assert out == "base:\n{}\nsums:\n{}\nbirds:\n{}\n".format(*texts)
    assert [line.split(",")[0] for line in err.splitlines()] == ["[base", "[sums", "[birds"]
    with pytest.raises(RecipeError, match="^/compare: nothing was asked yet"):
        said(chat, "one two", "/new", "/compare")


def said_after(chat: Chat, talk: Talk, line: str) -> Talk:
    return chat.do(talk, take(NOTHING, line)[1])


def test_a_correction_is_written_into_the_trace_and_the_last_one_counts(chat, tmp_path, capsys):
    path = tmp_path / "traffic.jsonl"
    said(chat, "one two", "wren owl", "/compare", "/wrong birds", "/wrong base")
    assert [one.correction for one in read_trace(path) if not one.forced] == [None, "base"]
    assert summary(read_trace(path))["corrected"] == 1
    assert "should have been base: written to the trace" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        (["/wrong birds"], "/wrong: nothing was asked yet"),
        (["one two", "/wrong brids"], "expert: no such expert; .* did you mean 'birds'"),
        (["/force sums", "one two", "/wrong birds"], "/wrong: the router did not decide: sums, forced"),
    ],
)
def test_what_no_router_decided_is_not_corrected(chat, lines, error, tmp_path):
    with pytest.raises(RecipeError, match=f"^{error}"):
        said(chat, *lines)
    assert summary(read_trace(tmp_path / "traffic.jsonl"))["corrected"] == 0


def test_the_oldest_turns_are_dropped_at_the_end_of_the_context_and_it_is_said(chat, capsys):
    lines = [f"{'one two three four ' * 12}{number}" for number in range(4)]
    talk = said(chat, *lines)
    assert talk.history[-2].content == lines[-1] and 2 <= len(talk.history) < 8
    assert talk.history[0].role == "user"
    assert "messages were dropped: the context has 128 tokens" in capsys.readouterr().err
    with pytest.raises(RecipeError, match="exceed the model's context"):
        said(chat, "one two " * 200)


# --- processes --------------------------------------------------------------------------------------------------------


def test_each_line_of_a_pipe_is_a_message(apart, mixture, tmp_path):
    lines = "one two\n/force birds\nzwölf \\\n猫\n/quit\nnever\n"
    code, out, err = apart(tmp_path, "chat", str(mixture), "--max-new-tokens", "3", stdin=lines)
    notes = err.splitlines()
    assert code == 0 and len(notes) == 3 and out.count("\n") >= 2, err
    assert "stopped at the token limit" in notes[0] and "forced" not in notes[0]
    assert notes[1] == "[birds answers until /force off]" and notes[2].startswith("[birds, forced; ")


@pytest.mark.parametrize(
    ("stdin", "error"),
    [
        ("a\n/frce x\n", "<stdin>:2: /frce: no such command; did you mean 'force'?"),
        ("a\n/wrong base\n", "<stdin>:2: /wrong: nothing routes here; a mixture has decisions to correct"),
        ("a\n/compare\n", "<stdin>:2: /compare: there are no experts to compare"),
        ("a\n```\nx\n", "<stdin>: the last message has no end; close the block with ```"),
    ],
)
def test_an_error_in_a_pipe_names_its_line_and_ends_the_chat(monkeypatch, capsys, stdin, error):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
    model = package.load("shipped:tiny")
    with pytest.raises(MoesaicError, match="^" + re.escape(error)):
        talk_to(model, {"max_new_tokens": 2, "stop": ()}, None)
    out, err = capsys.readouterr()
    assert out.strip() and err == "[base: nothing routes here; stopped at the token limit after 2 tokens]\n"


def test_an_expert_is_talked_to_alone(apart, mixture, tmp_path):
    code, out, err = apart(
        tmp_path, "chat", str(mixture.parent / "small/experts/birds"), "--max-new-tokens", "2", stdin="wren\n"
    )
    assert code == 0 and out and err.startswith("[birds: nothing routes here; stopped"), err


STALLING = """
import signal, moesaic
from moesaic.cli.chat import talk_to

model = moesaic.load("shipped:tiny")
whole = model.stream

def stream(asked, **settings):
    pieces = whole(asked, **settings)
    yield next(pieces)
    if asked[-1].content == "stall":
        signal.pause()
    return (yield from pieces)

model.stream = stream
talk_to(model, {"max_new_tokens": 4, "stop": ()}, None)
"""


class Terminal:
    """A process at a terminal of its own: what a person types into it and sees of it."""

    def __init__(self, folder: Path, *command: str):
        self.ours, theirs = pty.openpty()
        environment = {**os.environ, "TERM": "dumb", "PYTHONIOENCODING": "utf-8"}
        self.process = subprocess.Popen(
            [sys.executable, *command],
            cwd=folder,
            env=environment,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # Ctrl-C is then a signal
        )
        os.close(theirs)
        self.seen = ""

    def until(self, text: str) -> str:
        """Wait until `text` is seen; returns everything up to there since the last call."""
        ends = time.monotonic() + 100
        while text not in self.seen:
            ready, _, _ = select.select([self.ours], [], [], max(0, ends - time.monotonic()))
            assert ready, f"{text!r} never came: {self.seen!r}"
            self.seen += os.read(self.ours, 4096).decode(errors="replace")
        before, _, self.seen = self.seen.partition(text)
        return before

    def type(self, text: str) -> None:
        os.write(self.ours, text.encode())

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.ours)


def test_ctrl_c_stops_an_answer_and_not_the_chat(tmp_path):
    with Terminal(tmp_path, "-c", STALLING) as terminal:
        terminal.until("> ")
        terminal.type("stall\n")
        terminal.until("stall\r\n")
        first = next(package.load("shipped:tiny").stream("stall", max_new_tokens=4))
        terminal.until(first.strip())  # it is shown while the answer is written, whose end never comes
        terminal.type("\x03")
        terminal.until("[base: nothing routes here; stopped by Ctrl-C]")
        terminal.until("> ")
        terminal.type("half a mess\x03")
        terminal.until("> ")
        terminal.type("/nw\n")
        terminal.until("error: /nw: no such command; did you mean 'new'?")
        terminal.until("> ")
        terminal.type("zwölf\\\n")
        terminal.until(". ")
        terminal.type("猫\n")
        terminal.until("[base: nothing routes here; stopped at the token limit after 4 tokens]")
        terminal.until("> ")
        terminal.type("\x04")
        assert terminal.process.wait(timeout=100) == 0


def test_the_verb_talks_at_a_terminal(tmp_path):
    with Terminal(tmp_path, "-m", "moesaic", "chat", "shipped:tiny", "--max-new-tokens", "2") as terminal:
        terminal.until("[base; /help lists the commands, Ctrl-D leaves]")
        terminal.type("/help\n")
        terminal.until("/wrong EXPERT")
        terminal.type("/quit\n")
        assert terminal.process.wait(timeout=100) == 0
