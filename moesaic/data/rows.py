"""Reads a file as rows, and each row as its examples: prompts and responses.

Knows nothing about splits, tokens or the formats of files. Refuses or skips unusable rows, with file, line and field.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from itertools import islice
from os.path import basename
from pathlib import Path
from typing import Any, NamedTuple, overload

from moesaic.data.containers import TO_LINES, Given, converting, rows_of
from moesaic.data.rejects import Rejects
from moesaic.errors import DataError
from moesaic.tokenizer.conversation import ROLES, Conversation, Message, plain_at


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

    @property
    def told(self) -> list[Any]:
        """All that anything made from this example depends on, as plain data."""
        turns = [list(message) for message in self.messages]
        return [self.group, self.prompt, self.response, turns, self.texts, self.correct, self.incorrect]


def text_of(example: Example) -> str:
    """An example as one text; the text of a row with a label is its prompt."""
    if example.texts:
        return example.prompt
    return f"{example.prompt}\n{example.response}" if example.prompt else example.response


class Texts(Sequence[str]):
    """The texts of examples, made when they are asked for."""

    def __init__(self, examples: Sequence[Example]):
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> list[str]: ...
    def __getitem__(self, at: int | slice) -> str | list[str]:
        return [*map(text_of, self.examples[at])] if isinstance(at, slice) else text_of(self.examples[at])

    def __iter__(self) -> Iterator[str]:
        return map(text_of, self.examples)


def read_examples(path: Path) -> list[Example]:
    return [example for row in read_rows(path) for example in row]


def read_rows(
    path: Path, rejects: Rejects | None = None, limit: int | None = None, every: int = 1
) -> list[list[Example]]:
    """All rows of a file; see `streamed_rows`."""
    return [*streamed_rows(path, rejects, limit, every)]


def streamed_rows(
    path: Path, rejects: Rejects | None = None, limit: int | None = None, every: int = 1
) -> Iterator[list[Example]]:
    """Rows of a file, each as its examples (at least one), while it is read; unusable rows go to `rejects`.

    `limit`: read until so many different usable rows are found, and nothing behind them. `every`: only one row in so
    many, from the first one on.
    Raises DataError for a file that is not of rows or has no usable row.
    """

    def read(number: int, row: Mapping[str, Any]) -> list[Example]:
        return examples_of(row, path, number)

    return usable(path, rows_of(path), read, rejects or Rejects(), KNOWN, limit, every)


def usable(
    path: Path,
    given: Iterable[Given],
    read: Callable[[int, Mapping[str, Any]], list[Example]],
    rejects: Rejects,
    expected: str,
    limit: int | None = None,
    every: int = 1,
) -> Iterator[list[Example]]:
    """Read one in `every` given row by `read` until `limit` different ones are found; unusable rows go to `rejects`.

    Raises DataError, with `expected`, if no row is usable.
    """
    rows, groups, ignored = 0, set[str](), Counter[str]()
    for one in rejects.watch(path, islice(given, 0, None, every)):
        try:
            if one.defect:
                raise one.defect
            row = read(one.number, one.row)
            rejects.refuse(row)
        except DataError as error:
            rejects.add(error.at(path=path, line=one.number), path, one.number, one.text)
            continue
        rows += 1
        ignored.update(ignored_keys(one.row))
        yield row
        if limit:
            groups.add(row[0].group)
            if len(groups) == limit:
                break
    if not rows:
        left_out = rejects.of(path)
        got = f"{len(left_out)} rows, all bad, {left_out[0]}" if left_out else None
        raise DataError("no usable rows" if left_out else "no rows", path=path, expected=expected, got=got)
    rejects.used(path, rows, ignored)


def examples_of(row: Mapping[str, Any], path: Path | str | None = None, line: int | None = None) -> list[Example]:
    """The examples of a row of any shape; `path` and `line` are for errors."""
    try:
        texts, pairs = _shape(row)(row)
        correct, incorrect = (_answers(row, key) for key in ("correct_answers", "incorrect_answers"))
    except DataError as error:
        error.at(path=path, line=line, hint=conversion(row, Path(path)) if path and error.what == UNKNOWN else None)
        raise
    group = sha256("\0".join(texts).encode()).hexdigest()[:16]  # no text has a NUL, so different rows differ
    source = f"{basename(path)}:{line}" if path else ""
    asked = [prompt for prompt, _ in pairs if not isinstance(prompt, str)]  # the messages before each answer
    written = iter(plain_at(asked[-1], map(len, asked)) if asked else ())
    return [
        Example(prompt, response, group, source, correct=correct, incorrect=incorrect)
        if isinstance(prompt, str)
        else Example(next(written), response, group, source, prompt, correct=correct, incorrect=incorrect)
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
        if isinstance(row["prompt"], list) or isinstance(row[key], list):  # conversational rows of TRL
            before, after = _side(row, "prompt", "user"), _side(row, key, "assistant")
            return _conversation([*before, *after], key, first=len(before))
        prompt, response = text_at(row, "prompt"), text_at(row, key)
        return [prompt, response], [(prompt, response)]

    return read


def _side(row: Mapping[str, Any], key: str, role: str) -> list["Turn"]:
    """The turns under a key, whose value is a list of messages or the text of one message of this role."""
    if isinstance(row[key], list):
        return turns_of(row[key], key)
    return [Turn(Message(role, text_at(row, key)), True)]


def _instruction(row: Mapping[str, Any]) -> Read:
    prompt, response = text_at(row, "instruction"), text_at(row, "output")
    if row.get("input") is not None and (more := text_at(row, "input", default="")):
        prompt += "\n\n" + more
    return [prompt, response], [(prompt, response)]


def _messages(key: str, row: Mapping[str, Any]) -> Read:
    return _conversation(turns_of(row[key], key), key)


def _conversation(turns: list["Turn"], key: str, first: int = 0) -> Read:
    """An example for each answer to a user from the turn `first` on, except for turns that are context only."""
    messages = tuple(turn.message for turn in turns)
    pairs: list[tuple[str | Conversation, str]] = []
    has_user = context_only = False
    for index, (message, learned) in enumerate(turns):
        if message.role == "assistant" and has_user and index >= first:
            if learned:
                pairs.append((messages[:index], message.content))
            context_only |= not learned
        has_user |= message.role == "user"
    if not pairs:
        what = "every answer has the weight 0" if context_only else "no assistant message follows a user message"
        raise DataError(what, field=key)
    return [message.content for message in messages], pairs


class Turn(NamedTuple):
    """A message, and whether its text is to be learned where it is an answer."""

    message: Message
    learned: bool


NAMES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}
NAMES |= {"observation": "tool", "function": "tool", "function_response": "tool"}
"""Roles by other names, as ShareGPT has them."""
CALLS = ("tool_calls", "function_call")
NO_CALLS = (
    "calls of tools are not supported; write the call as text, or leave such rows out: --bad-rows skip --max-bad N"
)
TEXT_PARTS = ("text", "input_text", "output_text")


def messages_of(found: Any) -> Conversation:
    """Read a conversation from a JSON list of {role, content}; DataError names the wrong message."""
    return tuple(turn.message for turn in turns_of(found, "messages"))


def turns_of(found: Any, key: str) -> list[Turn]:
    """Read messages {role, content}, or {from, value} as ShareGPT has them."""
    if not isinstance(found, list):
        raise _wrong(key, "a list of {role, content}", found)
    return [_turn(message, f"{key}[{index}]") for index, message in enumerate(found)]


def _turn(message: Any, at: str) -> Turn:
    if not isinstance(message, Mapping):
        raise _wrong(at, "{role, content}", message)
    role_key, text_key = ("from", "value") if "from" in message and "role" not in message else ("role", "content")
    written = text_at(message, role_key, at=at)
    role = NAMES.get(written, written)
    if role == "function_call" or (any(message.get(call) for call in CALLS) and not message.get(text_key)):
        call = next((call for call in CALLS if message.get(call)), role_key)
        raise DataError("a call of a tool", field=f"{at}.{call}", hint=NO_CALLS)
    if role not in ROLES:
        raise DataError("unknown role", field=f"{at}.{role_key}", expected=" or ".join(ROLES), got=repr(written))
    if isinstance(message.get(text_key), list):
        message = {**message, text_key: joined(message[text_key], f"{at}.{text_key}")}
    text = text_at(message, text_key, at=at)
    return Turn(Message(role, text), message.get("weight") != 0 and message.get("train") is not False)


def joined(content: list[Any], field: str) -> str:
    """Content in parts, [{type: text, text}], as one text, a part a line."""
    texts = []
    for index, part in enumerate(content):
        kind = part.get("type", "text") if isinstance(part, Mapping) else None
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, Mapping) and kind in TEXT_PARTS:
            texts.append(text_at(part, "text", at=f"{field}[{index}]", default=""))
        else:
            raise DataError(
                "a part that is no text", field=f"{field}[{index}]", expected="{type: text, text}", got=kind
            )
    return "\n".join(texts)


def _plain(row: Mapping[str, Any]) -> Read:
    text = text_at(row, "text")
    return [text], [("", text)]


SHAPES: dict[tuple[str, ...], Callable[[Mapping[str, Any]], Read]] = {
    ("prompt", "response"): _answer("response"),
    ("prompt", "completion"): _answer("completion"),
    ("messages",): partial(_messages, "messages"),
    ("conversations",): partial(_messages, "conversations"),
    ("instruction", "output"): _instruction,
    ("prompt", "answer"): _answer("answer"),
    ("text",): _plain,
}
"""Required keys of each shape of row -> its reader."""

BESIDE = (("prompt", "answer"), ("text",))
"""Shapes whose last key, beside the keys of another shape, is one more key: each gives way to those before it."""

KNOWN = "rows with " + ", or ".join(" and ".join(keys) for keys in SHAPES)
UNKNOWN = "unknown shape of row"


def _shape(row: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], Read]:
    whole = [keys for keys in SHAPES if all(row.get(key) is not None for key in keys)]
    found = _strongest(whole) or _strongest([keys for keys in SHAPES if row.keys() >= {*keys}])
    if len(found) > 1:
        both = " and ".join("{" + ", ".join(keys) + "}" for keys in found)
        raise DataError(f"ambiguous: the row is {both} at once", expected=f"{KNOWN}, but only one of them")
    if not found:
        near = next((keys for keys in SHAPES if row.keys() & {*keys}), None)
        missing = next(key for key in near if key not in row) if near else None
        renamed = any(row.keys() >= {*keys} for keys in RENAMED)
        what = "missing" if near and not renamed else UNKNOWN
        raise DataError(what, field=missing, expected=KNOWN, got=", ".join(map(repr, row)) or "no keys")
    return SHAPES[found[0]]


def _strongest(shapes: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    return [keys for keys in shapes if keys not in BESIDE] or shapes[:1]


RENAMED: dict[tuple[str, ...], str] = {
    ("question", "answer"): "{'prompt': row['question'], 'response': row['answer']}",
    ("query", "response"): "{'prompt': row['query'], 'response': row['response']}",
    ("question", "response"): "{'prompt': row['question'], 'response': row['response']}",
    ("instruction", "response"): "{'prompt': row['instruction'], 'response': row['response']}",
    ("input", "output"): "{'prompt': row['input'], 'response': row['output']}",
    ("input", "target"): "{'prompt': row['input'], 'response': row['target']}",
    ("source", "target"): "{'prompt': row['source'], 'response': row['target']}",
    ("prompt", "chosen"): "{'prompt': row['prompt'], 'response': row['chosen']}",
    ("chosen",): "{'messages': row['chosen']}",
    ("dialog",): "{'messages': row['dialog']}",
    ("conversation",): "{'messages': row['conversation']}",
    ("content",): "{'text': row['content']}",
}
"""Keys of rows that are not read -> the row that says the same, in Python."""


def conversion(row: Mapping[str, Any], path: Path) -> str | None:
    """The line that converts a file of such rows of JSON; None for rows that no line is known for."""
    for keys, expression in RENAMED.items():
        if row.keys() >= {*keys}:
            return converting(TO_LINES, path, row=expression, one="row", source="map(json.loads, sys.stdin)")
    rows = next((key for key, value in row.items() if isinstance(value, list) and value), None)
    if rows and isinstance(row[rows][0], Mapping):
        return converting(TO_LINES, path, row="row", one="row", source=f"json.load(sys.stdin)[{rows!r}]")
    return None


IGNORED = ("system", "tools", "functions", "history", "weight", "train", "images", "audios")
IGNORED_IN_MESSAGES = (*CALLS, "reasoning_content", "thinking", "images")


def ignored_keys(row: Mapping[str, Any]) -> list[str]:
    """Keys of a row that mean something to other programs and nothing here."""
    messages = [
        message
        for key in ("messages", "conversations", "prompt", "completion")
        for message in (row[key] if isinstance(row.get(key), list) else [])
        if isinstance(message, Mapping)
    ]
    found = [key for key in IGNORED if row.get(key) not in (None, "", [], {}, True, 1)]
    found += [key for key in IGNORED_IN_MESSAGES if any(message.get(key) for message in messages)]
    if any(message.get("weight") not in (None, 0, 1) for message in messages):
        found.append("weight")
    return found


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
