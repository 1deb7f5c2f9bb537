"""The domain of plain English: paragraphs of the Python reference and of docstrings of the standard library.

Knows nothing about splits; its groups are topics and modules, so that none is in two splits.
"""

import re
from collections.abc import Iterable, Iterator
from functools import cache

from moesaic.data.demo.stdlib import modules
from moesaic.errors import DataError

SHORT, ROW, LONG = 80, 280, 680  # characters: minimum of a paragraph, minimum and maximum of a row

BLANK = re.compile(r"\n\s*\n")
WRAPPED = re.compile(r"(?<=\w-)\n\s*")
BULLET = re.compile(r"^(\* |- |\d+\. |\[\d+\] |\(\d+\) |Note: |Changed in version [\d.]+: )+")
EMPHASIS = re.compile(r"(?<![\w\"'*])(\*\*?|``?)(\w[^*`\"]*)\1(?![\w\"'*])")
# Tables, grammar, prompts, rulers, code, lists of bullets or of arguments.
NOT_PROSE = re.compile(
    r"""::= | >>> | --> | \s--\s | \s:\s | \S\ {3,}\S | \.\.\s | [-=~*+]{4,} | [{}|\\<>] | \w\ =\ \S | \w==
      | \w\(.*\)\ -> | XXX | ^\S+\(.*\)$ | \s[-*]\s.+\s[-*]\s | ^(Args|Arguments|Returns?|Raises|Yields):""",
    re.VERBOSE,
)
SENTENCE = re.compile(r"(?<=[.?!])\s+(?=[A-Z\"“])")


def groups(seed: int) -> dict[str, list[dict]]:
    """Rows by topic and module, each of a few consecutive paragraphs."""
    seen: set[str] = set()
    return {name: [{"text": text} for text in joined(fresh(texts, seen))] for name, texts in paragraphs().items()}


@cache
def paragraphs() -> dict[str, list[str]]:
    """Paragraphs of prose by topic and module."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        what, hint = "this Python lacks the module pydoc_data.topics", "install the full standard library"
        raise DataError(what, hint=hint) from error
    reference = {f"topic {name}": list(natural(topics[name])) for name in sorted(topics)}
    library = {
        f"module {name}": [text for docstring in module.docstrings for text in natural(docstring)]
        for name, module in modules().items()
    }
    return reference | library


def natural(text: str) -> Iterator[str]:
    """Paragraphs of prose in `text`, without markup and without a final sentence that ends in a colon."""
    for block in BLANK.split(text):
        plain = EMPHASIS.sub(r"\2", BULLET.sub("", " ".join(WRAPPED.sub("", block).split())))
        if NOT_PROSE.search(block.strip()) or NOT_PROSE.search(plain):
            continue
        if plain.endswith(":"):
            plain = " ".join(SENTENCE.split(plain)[:-1])
        if len(plain) >= SHORT and (plain[0].isupper() or plain[0] in '"“') and plain.endswith((".", "?", "!", ".)")):
            yield plain


def fresh(texts: Iterable[str], seen: set[str]) -> Iterator[str]:
    """Texts that are not in `seen`: the reference prints some sections under several topics."""
    for text in texts:
        if text not in seen:
            seen.add(text)
            yield text


def joined(texts: Iterable[str]) -> Iterator[str]:
    """Join consecutive paragraphs to rows of suitable length; split long ones after a sentence."""
    row = ""
    for text in texts:
        row = f"{row}\n\n{text}" if row else text
        while len(row) > LONG and (cut := row.rfind(". ", ROW, LONG)) > 0:
            yield row[: cut + 1]
            row = row[cut + 2 :]
        if ROW <= len(row) <= LONG:
            yield row
        if len(row) >= ROW:
            row = ""
