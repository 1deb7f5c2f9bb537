"""Are prompts read from lines and rows alike, and is what is neither refused by file and line?"""

import json

import pytest

from moesaic.data.prompts import read_prompts
from moesaic.errors import DataError


def test_a_text_file_has_a_prompt_in_each_line(tmp_path):
    path = tmp_path / "some.txt"
    path.write_bytes(b"\xef\xbb\xbfAdd 3 and 4. \r\n\n  Zw\xc3\xb6lf?\nAdd 3 and 4.\nthe last")
    assert read_prompts(path) == ["Add 3 and 4.", "Zwölf?", "the last"], "each once, without blank lines"


def test_rows_give_their_prompts_and_plain_text_is_one(tmp_path):
    path = tmp_path / "some.jsonl"
    rows = [
        {"prompt": "Add.", "response": "7"},
        {"text": "my card is lost"},
        {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]},
        {"prompt": "Add.", "response": "8"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    first, second, third = read_prompts(path)
    assert (first, second) == ("Add.", "my card is lost") and third[0].content == "Hello"


@pytest.mark.parametrize(
    ("data", "line", "said"),
    [
        (b"one\n\xff\n", 2, "not UTF-8"),
        (b"one\ntw\0o\n", 2, "NUL"),
        (b'one\n{"prompt": "x", "response": "y"}\n', 2, r"name that ends in \.jsonl"),
        (b"\n \n", None, "no prompts"),
    ],
)
def test_what_is_no_text_is_refused_by_its_line(data, line, said, tmp_path):
    path = tmp_path / "some.txt"
    path.write_bytes(data)
    with pytest.raises(DataError, match=said) as refused:
        read_prompts(path)
    assert refused.value.line == line and refused.value.path == path


def test_no_file_is_said_so(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_prompts(tmp_path / "none.txt")
    with pytest.raises(DataError, match="not a file"):
        read_prompts(tmp_path)
