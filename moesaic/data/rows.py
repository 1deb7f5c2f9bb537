"""Reads a JSON Lines file as rows, and each row as its examples: prompts and responses.

Knows nothing about splits or tokens. Refuses or skips unusable rows, with file, line and field.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from json import JSONDecodeError
from os.path import basename
from pathlib import Path
from typing import Any, TypeVar

from moesaic.data.rejects import Rejects
from moesaic.errors import DataError
from moesaic.files import disk
from moesaic.files.plain import decoded
from moesaic.tokenizer.conversation import ROLES, Conversation, Message, plain

R = TypeVar("R")

LINE_LIMIT = 16 << 20
BOM = b"\xef\xbb\xbf"
FOREIGN = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
    b"PAR1": "Parquet",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
"""First bytes of files that are often mistaken for JSON Lines."""


@dataclass(frozen=True)
class Example:
    """A response to a prompt, or plain text with an empty prompt.

    Examples of a row share `group`, a hash of the row's texts, and `source`, as "math.jsonl:17". `messages`: the
    conversation before the response, if any; `prompt` is its text for a base without a chat template. `texts`: those of
    a row with a label, which is the response; `prompt` joins them by line breaks. `correct`, `incorrect`: further right
    and wrong answers, for scores of generated text.
    """

    prompt: str
    response: str
    group: str
    source: str = field(default="", compare=False)
    messages: Conversation = ()
    texts: tuple[str, ...] = ()
    correct: tuple[str, ...] = field(default=(), compare=False)
    incorrect: tuple[str, ...] = field(default=(), compare=False)


def read_examples(path: Path) -> list[Example]:
    return [example for row in read_rows(path) for example in row]


def read_rows(path: Path, rejects: Rejects | None = None) -> list[list[Example]]:
    """Rows of a file, each as its examples (at least one); unusable rows go to `rejects`.

    Raises DataError for a file that is not JSON Lines or has no usable row.
    """

    def read(number: int, line: bytes) -> list[Example]:
        return examples_of(parsed(path, number, line), path, number)

    return usable(path, lines(path), read, rejects or Rejects(), KNOWN)


def usable(
    path: Path,
    given: Iterable[tuple[int, R, DataError | None]],
    read: Callable[[int, R], list[Example]],
    rejects: Rejects,
    expected: str,
) -> list[list[Example]]:
    """Read `given` rows, with their numbers and defects, by `read`; unusable rows go to `rejects`.

    Raises DataError, with `expected`, if no row is usable.
    """
    rows = []
    for number, given_row, defect in given:
        try:
            if defect:
                raise defect
            row = read(number, given_row)
            rejects.refuse(row)
            rows.append(row)
        except DataError as error:
            raw = given_row if isinstance(given_row, bytes) else repr(given_row).encode("utf-8", "backslashreplace")
            rejects.add(error.at(path=path, line=number), path, number, raw)
    if not rows:
        left_out = rejects.of(path)
        got = f"{len(left_out)} rows, all bad, {left_out[0]}" if left_out else None
        raise DataError("no usable rows" if left_out else "no rows", path=path, expected=expected, got=got)
    rejects.used(path, len(rows))
    return rows


def examples_of(row: Mapping[str, Any], path: Path | str | None = None, line: int | None = None) -> list[Example]:
    """The examples of a row of any shape; `path` and `line` are for errors."""
    try:
        texts, pairs = _shape(row)(row)
        correct, incorrect = (_answers(row, key) for key in ("correct_answers", "incorrect_answers"))
    except DataError as error:
        error.at(path=path, line=line)
        raise
    group = sha256("\0".join(texts).encode()).hexdigest()[:16]  # no text has a NUL, so different rows differ
    source = f"{basename(path)}:{line}" if path else ""
    return [
        Example(prompt, response, group, source, correct=correct, incorrect=incorrect)
        if isinstance(prompt, str)
        else Example(plain(prompt), response, group, source, prompt, correct=correct, incorrect=incorrect)
        for prompt, response in pairs
    ]


def _answers(row: Mapping[str, Any], key: str) -> tuple[str, ...]:
    found = row.get(key) or []
    if not isinstance(found, list):
        raise _wrong(key, "a list of texts", found)
    return tuple(text_at({key: one}, key) for one in found)


# A reader returns the texts that identify a row, and (prompt, response) of its examples.
Read = tuple[list[str], list[tuple[str | Conversation, str]]]


def _answer(key: str) -> Callable[[Mapping[str, Any]], Read]:
    def read(row: Mapping[str, Any]) -> Read:
        prompt, response = text_at(row, "prompt"), text_at(row, key)
        return [prompt, response], [(prompt, response)]

    return read


def _instruction(row: Mapping[str, Any]) -> Read:
    prompt, response = text_at(row, "instruction"), text_at(row, "output")
    if more := text_at(row, "input", default=""):
        prompt += "\n\n" + more
    return [prompt, response], [(prompt, response)]


def _messages(row: Mapping[str, Any]) -> Read:
    messages = messages_of(row["messages"])
    pairs: list[tuple[str | Conversation, str]] = []
    has_user = False
    for index, (role, text) in enumerate(messages):
        if role == "assistant" and has_user:
            pairs.append((messages[:index], text))
        has_user |= role == "user"
    if not pairs:
        raise DataError("no assistant message follows a user message", field="messages")
    return [message.content for message in messages], pairs


def messages_of(found: Any) -> Conversation:
    """Read a conversation from a JSON list of {role, content}; DataError names the wrong message."""
    if not isinstance(found, list):
        raise _wrong("messages", "a list of {role, content}", found)
    messages: list[Message] = []
    for index, message in enumerate(found):
        at = f"messages[{index}]"
        if not isinstance(message, Mapping):
            raise _wrong(at, "{role, content}", message)
        role, text = text_at(message, "role", at=at), text_at(message, "content", at=at)
        if role not in ROLES:
            raise DataError("unknown role", field=f"{at}.role", expected=" or ".join(ROLES), got=repr(role))
        messages.append(Message(role, text))
    return tuple(messages)


def _plain(row: Mapping[str, Any]) -> Read:
    text = text_at(row, "text")
    return [text], [("", text)]


SHAPES: dict[tuple[str, ...], Callable[[Mapping[str, Any]], Read]] = {
    ("prompt", "response"): _answer("response"),
    ("prompt", "completion"): _answer("completion"),
    ("messages",): _messages,
    ("text",): _plain,
    ("instruction", "output"): _instruction,
}
"""Required keys of each shape of row -> its reader."""

KNOWN = "rows with " + ", or ".join(" and ".join(keys) for keys in SHAPES)


def _shape(row: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], Read]:
    found = [keys for keys in SHAPES if row.keys() >= {*keys}]
    if len(found) > 1:
        both = " and ".join("{" + ", ".join(keys) + "}" for keys in found)
        raise DataError(f"ambiguous: the row is {both} at once", expected=f"{KNOWN}, but only one of them")
    if not found:
        near = next((keys for keys in SHAPES if row.keys() & {*keys}), None)
        missing = next(key for key in near if key not in row) if near else None
        what = "missing" if near else "unknown shape of row"
        raise DataError(what, field=missing, expected=KNOWN, got=", ".join(map(repr, row)) or "no keys")
    return SHAPES[found[0]]


def text_at(row: Mapping[str, Any], key: str, at: str = "", default: str | None = None) -> str:
    """Text under `key`; may be missing or blank if there is a default."""
    field = f"{at}.{key}" if at else key
    if key not in row and default is None:
        raise DataError("missing", field=field, expected="text")
    text = row.get(key, default)
    if not isinstance(text, str):
        raise _wrong(field, "text", text)
    if "\0" in text:
        raise DataError("a NUL character", field=field, expected="text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError("half a character (an unpaired surrogate)", field=field, got=ascii(text[error.start])) from None
    if text.strip():
        return text
    if default is None:
        raise DataError("empty" if not text else "only white space", field=field, expected="text")
    return default


def _wrong(field: str, expected: str, got: Any) -> DataError:
    return DataError("wrong type", field=field, expected=expected, got="null" if got is None else got)


def not_utf8(error: UnicodeDecodeError, line: bytes) -> DataError:
    return DataError("not UTF-8", got=f"byte 0x{line[error.start]:02x} at column {error.start + 1}")


def parsed(path: Path, number: int, line: bytes) -> dict[str, Any]:
    hint = None if line.endswith(b"\n") else "the file ends in this line: is the file cut off?"
    try:
        return decoded(line)
    except UnicodeDecodeError as error:
        raise not_utf8(error, line).at(path=path, line=number, hint=hint) from None
    except JSONDecodeError as error:
        what = f"not JSON: {error.msg.removesuffix(' at')} at column {error.colno}"
        raise DataError(what, path=path, line=number, got=repr(error.doc[:200]), hint=hint) from None
    except ValueError as error:
        raise DataError(f"not a row: {error}", path=path, line=number) from None


def lines(path: Path) -> Iterator[tuple[int, bytes, DataError | None]]:
    """Number, text and defect of each line of a file, without blank lines at the end.

    A line over the limit is truncated.
    """
    with disk.errors(path):
        if not path.is_file():
            raise DataError("not a file" if path.exists() else "no such file", path=path, expected=KNOWN)
        with path.open("rb") as file:
            blank = None
            for number, line in enumerate(iter(partial(file.readline, LINE_LIMIT + 1), b""), 1):
                too_long = len(line) > LINE_LIMIT
                if number == 1:
                    _refuse_foreign(path, line)
                    line = line.removeprefix(BOM)
                if not too_long and not line.strip():
                    blank = blank or number
                    continue
                for empty in range(blank or number, number):
                    yield empty, b"", DataError("a blank line between rows", path=path, line=empty, hint="remove it")
                blank = None
                if too_long:
                    expected = f"at most {LINE_LIMIT:,} bytes"
                    yield number, line, DataError("the line is too long", path=path, line=number, expected=expected)
                    while line and not line.endswith(b"\n"):
                        line = file.readline(LINE_LIMIT + 1)
                else:
                    yield number, line, None


def _refuse_foreign(path: Path, start: bytes) -> None:
    kind = next((kind for magic, kind in FOREIGN.items() if start.startswith(magic)), None)
    if kind or b"\0" in start[:4]:  # UTF-16 or UTF-32 without a mark; a later NUL is a defect of its row
        raise DataError("not JSON Lines", path=path, line=1, expected="UTF-8 text", got=kind or "NUL bytes")
