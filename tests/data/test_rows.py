import gzip
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesaic.data import containers, rows
from moesaic.data.rows import Example, examples_of, read_examples, read_rows
from moesaic.errors import DataError

GOOD = b'{"prompt": "ask", "response": "say"}\n'
SHAPES = (
    "rows with prompt and response, or prompt and completion, or messages, or conversations, "
    "or instruction and output, or text"
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
