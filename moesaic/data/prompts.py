"""Prompts that stand for an expert: the rows of a JSON Lines file, or the lines of any other text file.

Knows nothing about tokens or experts.
"""

from pathlib import Path

from moesaic.data.rows import LINE_LIMIT, read_examples
from moesaic.errors import DataError
from moesaic.files import disk
from moesaic.tokenizer import Conversation


def read_prompts(path: Path) -> list[str | Conversation]:
    """Every prompt of a file once, in its order; of a row that is plain text, the text. DataError where there is none.

    Blank lines of a text file are passed over.
    """
    if path.suffix == ".jsonl":
        rows = read_examples(path)
        found = [example.messages or example.prompt or example.response for example in rows]
    else:
        found = [*lines(path)]
    if not found:
        raise DataError("no prompts", path=path, expected="a prompt in each line, or rows in a .jsonl file")
    return list(dict.fromkeys(found))


def lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank."""
    with disk.errors(path):
        if not path.is_file():
            what = "not a file" if path.exists() else "there is no such file"
            raise DataError(what, path=path, expected="a prompt in each line, or rows in a .jsonl file")
        with path.open("rb") as file:
            data = file.read(LINE_LIMIT + 1)
    if len(data) > LINE_LIMIT:
        raise DataError("the file is too large for prompts", path=path, expected=f"at most {LINE_LIMIT:,} bytes")
    found = []
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            text = line.decode().strip()
        except UnicodeDecodeError as error:
            got = f"byte 0x{line[error.start]:02x} at column {error.start + 1}"
            raise DataError("not UTF-8", path=path, line=number, got=got) from None
        if "\0" in text:
            raise DataError("a NUL character", path=path, line=number, expected="text")
        if text.startswith('{"') and text.endswith("}"):
            hint = "give the file a name that ends in .jsonl"
            raise DataError("a row of JSON, not a prompt", path=path, line=number, got=text, hint=hint)
        if text:
            found.append(text)
    return found
