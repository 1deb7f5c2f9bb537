import gzip
import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesaic.data import containers, rows
from moesaic.data.rows import Example, examples_of, read_examples, read_rows
from moesaic.errors import DataError

GOOD = b'{"prompt": "ask", "response": "say"}\n'
SHAPES = (
    "rows with prompt and response, or prompt and completion, or messages, or conversations, "
    "or instruction and output, or prompt and answer, or text"
)


def pairs(row: dict) -> list[tuple[str, str]]:
    return [(example.prompt, example.response) for example in examples_of(row)]


def said(**messages: str) -> dict:
    return {"messages": [{"role": key.rstrip("_"), "content": text} for key, text in messages.items()]}


# Good rows


def test_each_shape():
    assert pairs({"prompt": "ask", "response": " say\n"}) == [("ask", " say\n")]
    assert pairs({"prompt": "ask", "completion": "say"}) == [("ask", "say")]
    assert pairs({"text": " once "}) == [("", " once ")]
    assert pairs({"instruction": "add", "output": "3"}) == [("add", "3")]
    assert pairs({"instruction": "add", "input": " \n", "output": "3"}) == [("add", "3")]
    assert pairs({"instruction": "add", "input": "1 2", "output": "3"}) == [("add\n\n1 2", "3")]


def test_a_conversation_is_an_example_for_each_answer_to_a_user():
    row = said(system="be kind", assistant="hello", user="a?", assistant_="a!", tool="t", assistant__="b!", user_="c?")
    first = "System:\nbe kind\nAssistant:\nhello\nUser:\na?\nAssistant:"
    assert pairs(row) == [(first, "a!"), (f"{first}\na!\nTool:\nt\nAssistant:", "b!")]
    roles = [[message.role for message in example.messages] for example in examples_of(row)]
    assert roles == [["system", "assistant", "user"], ["system", "assistant", "user", "assistant", "tool"]]
    assert len({example.group for example in examples_of(row)}) == 1


def test_other_keys_are_allowed_and_change_nothing():
    row = {"prompt": "ask", "response": "say", "instruction": "ask", "source_id": None, "choices": ["", 1], "input": 3}
    assert examples_of(row) == examples_of({"prompt": "ask", "response": "say"})


def test_rows_of_trace_are_a_list_of_prompts_and_answers(tmp_path):
    path = tmp_path / "test.json"
    path.write_text('[{"prompt": "ask", "answer": "say"}, {"prompt": "Q", "answer": "B", "text": "more"}]')
    assert [(one.prompt, one.response) for one in read_examples(path)] == [("ask", "say"), ("Q", "B")]
    # beside the keys of another shape an answer is one more key, whatever it is
    assert pairs({"prompt": "ask", "response": "say", "answer": 3}) == [("ask", "say")]
    assert pairs({"text": "plain", "answer": "B"}) == [("", "plain")]


def test_a_group_is_the_hash_of_the_rows_texts():
    group = examples_of({"prompt": "ask", "response": "say"})[0].group
    assert group == "bf6a3deca1fdbebd"
    for same in ({"prompt": "ask", "completion": "say"}, {"instruction": "ask", "output": "say", "input": ""}):
        assert examples_of(same)[0].group == group
    assert examples_of(said(user="ask", assistant="say"))[0].group == group
    others = [("asks", "ay"), ("say", "ask"), ("ask", "say ")]
    assert group not in {examples_of({"prompt": p, "response": r})[0].group for p, r in others}


text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(str.strip)
extra = st.dictionaries(st.sampled_from(["source_id", "label", "x"]), st.none() | st.integers() | st.text("ab"))
single = st.one_of(
    st.builds(lambda p, r: ({"prompt": p, "response": r}, [(p, r)]), text, text),
    st.builds(lambda p, r: ({"prompt": p, "completion": r}, [(p, r)]), text, text),
    st.builds(lambda t: ({"text": t}, [("", t)]), text),
    st.builds(lambda i, o: ({"instruction": i, "output": o}, [(i, o)]), text, text),
    st.builds(lambda u, a: (said(user=u, assistant=a), [(u, a)]), text, text),
    st.builds(
        lambda u, a, v, b: (
            said(user=u, assistant=a, user_=v, assistant_=b),
            [(u, a), (f"User:\n{u}\nAssistant:\n{a}\nUser:\n{v}\nAssistant:", b)],
        ),
        *[text] * 4,
    ),
)


@given(
    st.lists(st.tuples(single, extra), min_size=1, max_size=6),
    st.booleans(),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([b"", containers.BOM]),
    st.sampled_from(["", "\n", "\n \n\r\n"]),
)
def test_good_rows_come_back_unchanged(tmp_path_factory, drawn, ascii_only, end, mark, tail):
    path = tmp_path_factory.mktemp("good") / "rows.jsonl"
    lines = [json.dumps(row | more, ensure_ascii=ascii_only) for (row, _), more in drawn]
    path.write_bytes(mark + (end.join(lines) + tail).encode())
    read = read_rows(path)
    assert [[(e.prompt, e.response) for e in row] for row in read] == [examples for (_, examples), _ in drawn]
    assert [example for row in read for example in row] == read_examples(path)


# Defects: each stands in line 3 of a file of five lines

DEFECTS: dict[str, tuple[bytes, str | None, str]] = {
    "not json": (b"prompt: ask", None, "not JSON: Expecting value at column 1: 'prompt: ask"),
    "two objects": (GOOD.strip() + b",", None, "not JSON: Extra data at column 37"),
    "a list": (b'["ask", "say"]', None, "expected an object"),
    "an empty list": (b"[]", None, "expected an object"),
    "a number": (b"3", None, "expected an object"),
    "null": (b"null", None, "expected an object"),
    "a key twice": (b'{"prompt": "a", "prompt": "b", "response": "c"}', None, "duplicate key 'prompt'"),
    "an inner key twice": (b'{"text": "a", "x": {"y": 1, "y": 2}}', None, "duplicate key 'y'"),
    "NaN for text": (b'{"text": NaN}', "text", "wrong type; expected text; got nan"),
    "too many digits": (b'{"text": "a", "x": ' + b"9" * 5000 + b"}", None, "not a row"),
    "deep nesting": (b'{"text": "a", "x": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", None, "nested too deeply"),
    "invalid utf-8": (b'{"text": "caf\xe9"}', None, "not UTF-8: byte 0xe9 at column 14"),
    "a raw NUL": (b'{"text": "a\0"}', None, "not JSON: Invalid control character at column 12"),
    "a BOM inside": (containers.BOM + b'{"text": "a"}', None, "not JSON: Unexpected UTF-8 BOM"),
    "a blank line": (b" \t", None, "a blank line between rows"),
    "too long a line": (
        b'{"text": "' + b"a" * containers.LINE_LIMIT + b'"}',
        None,
        "expected at most 16,777,216 bytes",
    ),
    "no keys": (b"{}", None, f"unknown shape of row; expected {SHAPES}; got no keys"),
    "unknown keys": (b'{"question": "a"}', None, f"unknown shape of row; expected {SHAPES}; got 'question'"),
    "several shapes": (
        b'{"prompt": "a", "response": "b", "instruction": "c", "output": "d"}',
        None,
        "{prompt, response} and {instruction, output} at once",
    ),
    "two responses": (b'{"prompt": "a", "response": "b", "completion": "b"}', None, "ambiguous"),
    "no response": (b'{"prompt": "a"}', "response", f"missing; expected {SHAPES}; got 'prompt'"),
    "no prompt": (b'{"response": "a"}', "prompt", "missing"),
    "no output": (b'{"instruction": "a", "input": "b"}', "output", "missing"),
    "null text": (b'{"text": null}', "text", "wrong type; expected text; got null"),
    "null response": (b'{"prompt": "a", "response": null}', "response", "wrong type; expected text; got null"),
    "a number for text": (b'{"prompt": 3, "response": "a"}', "prompt", "wrong type; expected text; got 3"),
    "a list for text": (b'{"text": ["a"]}', "text", "wrong type; expected text; got ['a']"),
    "empty": (b'{"prompt": "a", "response": ""}', "response", "empty"),
    "white space": (b'{"prompt": "\\u00a0\\n\\t", "response": "a"}', "prompt", "only white space"),
    "half a character": (b'{"text": "\\ud83d!"}', "text", "unpaired surrogate): '\\ud83d'"),
    "an escaped NUL": (b'{"text": "a\\u0000"}', "text", "a NUL character"),
    "a wrong input": (b'{"instruction": "a", "input": 3, "output": "b"}', "input", "wrong type"),
    "messages not a list": (b'{"messages": "a"}', "messages", "expected a list of {role, content}"),
    "no messages": (b'{"messages": []}', "messages", "no assistant message follows a user message"),
    "no user": (b'{"messages": [{"role": "assistant", "content": "a"}]}', "messages", "no assistant message follows"),
    "a message of text": (b'{"messages": ["a"]}', "messages[0]", "expected {role, content}"),
    "an unknown role": (b'{"messages": [{"role": "narrator", "content": "a"}]}', "messages[0].role", "unknown role"),
    "a role that would colour the terminal": (
        b'{"messages": [{"role": "\\u001b[31m", "content": "a"}]}',
        "messages[0].role",
        r"got '\x1b[31m'",
    ),
    "a missing role": (b'{"messages": [{"content": "a"}]}', "messages[0].role", "missing"),
    "null content": (
        b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": null}]}',
        "messages[1].content",
        "wrong type",
    ),
}


@pytest.mark.parametrize(("line", "field", "says"), DEFECTS.values(), ids=DEFECTS.keys())
def test_a_defect_is_refused_with_its_line_and_field(tmp_path, line, field, says):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD + GOOD + line + b"\n" + GOOD + GOOD)
    with pytest.raises(DataError) as caught:
        read_examples(path)
    assert (caught.value.path, caught.value.line, caught.value.field) == (path, 3, field)
    assert says in str(caught.value) and len(str(caught.value)) < 700
    assert str(caught.value).startswith(f"{path}:3: ")


FILES: dict[str, tuple[bytes, int | None, str]] = {
    "gzip": (gzip.compress(GOOD), 1, "expected UTF-8 text; got gzip"),
    "UTF-16": (GOOD.decode().encode("utf-16"), 1, "expected UTF-8 text; got UTF-16"),
    "UTF-16 without a mark": (GOOD.decode().encode("utf-16-be"), 1, "got NUL bytes"),
    "Parquet": (b"PAR1\x15\x04", None, "not readable as Parquet"),
    "empty": (b"", None, "no rows"),
    "only a mark": (containers.BOM, None, "no rows"),
    "only blank lines": (b"\n\r\n \n", None, "no rows"),
    "first line blank": (b"\n" + GOOD, 1, "a blank line between rows"),
    "several blank lines": (GOOD + b"\r\n\n\n" + GOOD, 2, "a blank line between rows"),
    "cut off": (GOOD + GOOD[:20], 2, "is the file cut off?"),
    "cut off inside a character": (GOOD + '{"text": "é'.encode()[:-1], 2, "is the file cut off?"),
    "old Mac line ends": (GOOD.strip() + b"\r" + GOOD.strip() + b"\r", 1, "not JSON: Extra data"),
    "a JSON list that is cut off": (b"[\n" + GOOD.strip() + b"\n", 2, "not JSON: row 1 of the list"),
    "a JSON list with a damaged row": (b"[\n" + GOOD.strip() + b",\n{3}]", 3, "not JSON: row 2 of the list"),
    "text behind a JSON list": (b"[" + GOOD.strip() + b"] 3", None, "text behind the list"),
    "one JSON value": (b'{\n"data": []}', 1, "json.load(sys.stdin)"),
    "plain text": (b"Once upon a time\n", 1, "lines of plain text become rows so"),
}


@pytest.mark.parametrize(("content", "line", "says"), FILES.values(), ids=FILES.keys())
def test_a_file_that_is_not_rows(tmp_path, content, line, says):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_examples(path)
    assert (caught.value.path, caught.value.line) == (path, line)
    assert says in str(caught.value)


def test_a_longest_line_is_read(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "12345"}\n')
    monkeypatch.setattr(containers, "LINE_LIMIT", 18)
    assert read_examples(path)[0].response == "12345"
    monkeypatch.setattr(containers, "LINE_LIMIT", 17)
    with pytest.raises(DataError, match="too long"):
        read_examples(path)


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0c", "\x1e"])
def test_only_a_line_feed_ends_a_line(tmp_path, separator):
    path = tmp_path / "rows.jsonl"
    text = f"a{separator}b"
    escaped = json.dumps({"text": text}, ensure_ascii=separator < " ")
    path.write_text(f"{escaped}\n{escaped}\n3\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_examples(path)
    assert caught.value.line == 3
    path.write_text(f"{escaped}\n", encoding="utf-8")
    assert read_examples(path) == [Example("", text, examples_of({"text": text})[0].group)]


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_examples(tmp_path / "rows.jsonl")
    with pytest.raises(DataError, match="not a file"):
        read_examples(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(DataError, match="not a file"):
            read_examples(tmp_path / "pipe")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from([*sum(rows.SHAPES, ()), "input", "role", "content"]), inner)
        ),
    )
)
def test_any_object_is_read_or_refused_by_name(value):
    row = value if isinstance(value, dict) else {"messages": value}
    try:
        examples = examples_of(row, "somewhere", 7)
    except DataError as error:
        assert (error.path, error.line) == ("somewhere", 7)
    else:
        assert examples and all(example.response.strip() for example in examples)


# Conversations as other programs write them

TALK = said(system="be kind", user="a?", assistant="a!", user_="b?", assistant_="b!")
SPELLINGS: dict[str, dict] = {
    "ShareGPT": {
        "conversations": [
            {"from": "system", "value": "be kind"},
            {"from": "human", "value": "a?"},
            {"from": "gpt", "value": "a!"},
            {"from": "human", "value": "b?"},
            {"from": "gpt", "value": "b!"},
        ]
    },
    "conversations with role and content": {"conversations": TALK["messages"]},
    "content in parts": {
        "messages": [
            {**turn, "content": [{"type": "text", "text": turn["content"]}]} if turn["role"] != "system" else turn
            for turn in TALK["messages"]
        ]
    },
    "text beside messages": {**TALK, "text": "be kind a? a! b? b!"},
    "messages with names, ids and no calls": {
        "messages": [{**turn, "name": "x", "id": 3, "tool_calls": None} for turn in TALK["messages"]]
    },
}


@pytest.mark.parametrize("row", SPELLINGS.values(), ids=SPELLINGS.keys())
def test_a_conversation_is_the_same_in_each_spelling(row):
    assert examples_of(row) == examples_of(TALK) and len(examples_of(row)) == 2


@pytest.mark.parametrize(
    ("other", "role"),
    [
        *[(name, "assistant") for name in ("gpt", "chatgpt", "bot", "model", "assistant")],
        *[(name, "tool") for name in ("observation", "function", "function_response", "tool")],
        *[("human", "user"), ("system", "system"), ("developer", "developer")],
    ],
)
def test_each_role_of_sharegpt_has_a_name_here(other, role):
    turns = [{"from": "human", "value": "a"}, {"from": other, "value": "b"}, {"from": "gpt", "value": "c"}]
    assert examples_of({"conversations": turns})[-1].messages[1] == (role, "b")


@pytest.mark.parametrize("answer", ["response", "completion"])
def test_lists_of_messages_as_prompt_and_answer_are_one_conversation(answer):
    *before, last = TALK["messages"]
    (example,) = examples_of({"prompt": before, answer: [last]})
    assert example == examples_of(TALK)[-1], "an answer within the prompt is context and no example"
    assert examples_of({"prompt": before, answer: "b!"}) == [example]
    assert examples_of({"prompt": "a?", answer: [{"role": "assistant", "content": "a!"}]}) == examples_of(
        said(user="a?", assistant="a!")
    )


def test_parts_are_joined_by_line_breaks_and_a_part_that_is_no_text_is_named():
    def asked(*content):
        return {"messages": [{"role": "user", "content": [*content]}, {"role": "assistant", "content": "c"}]}

    parts = ("a", {"type": "text", "text": "b"}, {"type": "input_text", "text": "d"})
    assert examples_of(asked(*parts))[0].messages[0].content == "a\nb\nd"
    for part, got in (({"type": "image_url", "image_url": {}}, "image_url"), (3, "")):
        with pytest.raises(DataError, match="a part that is no text") as caught:
            examples_of(asked("a", part))
        assert caught.value.field == "messages[0].content[1]" and got in str(caught.value)


@pytest.mark.parametrize("mark", [{"weight": 0}, {"train": False}])
def test_an_answer_that_is_context_only_is_read_and_not_learned(mark):
    turns = TALK["messages"]
    (example,) = examples_of({"messages": [*turns[:2], {**turns[2], **mark}, *turns[3:]]})
    assert example == examples_of(TALK)[1]
    with pytest.raises(DataError, match="messages: every answer has the weight 0"):
        examples_of({"messages": [{**turn, **mark} for turn in turns]})


CALL = {"function": {"name": "add", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("turn", "field"),
    [
        ({"role": "assistant", "content": None, "tool_calls": [CALL]}, "messages[1].tool_calls"),
        ({"role": "assistant", "content": "", "function_call": CALL["function"]}, "messages[1].function_call"),
        ({"from": "function_call", "value": "add()"}, "messages[1].from"),
    ],
)
def test_a_call_of_a_tool_is_refused_with_what_to_do(turn, field):
    with pytest.raises(DataError, match="a call of a tool; calls of tools are not supported") as caught:
        examples_of({"messages": [{"role": "user", "content": "1 + 1"}, turn]})
    assert caught.value.field == field and "--bad-rows skip" in str(caught.value)


def test_text_beside_a_call_is_read_and_the_call_counted_as_ignored():
    row = {"messages": [TALK["messages"][1], {"role": "assistant", "content": "I add", "tool_calls": [CALL]}]}
    assert examples_of(row)[0].response == "I add"
    assert rows.ignored_keys(row) == ["tool_calls"]


def test_keys_without_an_effect_are_named_and_those_with_one_are_not():
    said_nothing = {"system": "", "weight": 1, "train": True, "tools": [], "images": None}
    assert rows.ignored_keys({"prompt": "a", "response": "b", **said_nothing}) == []
    assert rows.ignored_keys({"prompt": "a", "response": "b", "system": "s", "weight": 0.5}) == ["system", "weight"]
    assert rows.ignored_keys({"messages": [{"role": "user", "content": "a", "weight": one} for one in (0, 1)]}) == []
    assert rows.ignored_keys({"messages": [{"role": "user", "content": "a", "weight": 0.5}]}) == ["weight"]


def test_rows_of_an_unread_shape_are_told_the_line_that_converts_them(tmp_path):
    path = tmp_path / "asked.jsonl"
    path.write_text('{"question": "a", "answer": "b"}\n{"question": "c\\u00e9", "answer": "d"}\n')
    with pytest.raises(DataError) as caught:
        read_examples(path)
    line = caught.value.hint.removeprefix("convert it: ").replace("python ", f"{sys.executable} ", 1)
    subprocess.run(line, shell=True, cwd=tmp_path, check=True)
    assert [(one.prompt, one.response) for one in read_examples(tmp_path / "asked-rows.jsonl")] == [
        ("a", "b"),
        ("cé", "d"),
    ]


def test_a_limit_reads_no_row_behind_those_that_it_needs(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD * 3 + b'{"text": "a"}\n{"text": "b"}\nnot a row\n')
    assert [row[0].response for row in read_rows(path, limit=3)] == ["say", "say", "say", "a", "b"]
    with pytest.raises(DataError, match="rows.jsonl:6: not JSON"):
        read_rows(path, limit=4)
