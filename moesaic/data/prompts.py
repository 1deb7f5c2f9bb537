"""Prompts that represent an expert: the rows of a file of rows, or the lines of another text file.

Knows nothing about tokens or experts.
"""

from pathlib import Path

from moesaic.data.containers import BOM, LINE_LIMIT, not_utf8
from moesaic.data.rows import read_examples
from moesaic.errors import DataError
from moesaic.files import disk
from moesaic.tokenizer import Conversation

ROWS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
"""Endings of files of rows."""
EXPECTED = f"a prompt in each line, or rows in a file that ends in {', '.join(ROWS)}"


def read_prompts(path: Path) -> list[str | Conversation]:
    """Distinct prompts of a file in their order; a row of plain text is a prompt, a blank line is not.

    Raises DataError for a file without prompts.
    """
    if path.suffix.lower() in ROWS:
        rows = read_examples(path)
        found = [example.messages or example.prompt or example.response for example in rows]
    else:
        found = [*lines(path)]
    if not found:
        raise DataError("no prompts", path=path, expected=EXPECTED)
    return list(dict.fromkeys(found))


def lines(path: Path) -> list[str]:
    """Lines of a text file, without blank ones; raises DataError for lines that are no prompts."""
    with disk.errors(path):
        if not path.is_file():
            what = "not a file" if path.exists() else "no such file"
            raise DataError(what, path=path, expected=EXPECTED)
        with path.open("rb") as file:
            data = file.read(LINE_LIMIT + 1)
    if len(data) > LINE_LIMIT:
        raise DataError("the file is too large for prompts", path=path, expected=f"at most {LINE_LIMIT:,} bytes")
    found = []
    for number, line in enumerate(data.removeprefix(BOM).split(b"\n"), 1):
        try:
            text = line.decode().strip()
        except UnicodeDecodeError as error:
            raise not_utf8(error, line).at(path=path, line=number) from None
        if "\0" in text:
            raise DataError("a NUL character", path=path, line=number, expected="text")
        if text.startswith('{"') and text.endswith("}"):
            hint = "give the file a name that ends in .jsonl"
            raise DataError("a row of JSON, not a prompt", path=path, line=number, got=text, hint=hint)
        if text:
            found.append(text)
    return found
