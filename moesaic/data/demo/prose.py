"""The domain of plain English: short stories, the Python reference and docstrings of its library.

Knows nothing about splits; its groups are openings of stories, topics and modules, so that none is in two splits.
"""

import re
from collections.abc import Iterable, Iterator
from functools import cache
from random import Random

from moesaic.data.demo.shapes import Exchange, Groups
from moesaic.data.demo.stdlib import modules
from moesaic.data.demo.templates import drawn
from moesaic.errors import DataError

STORIES = 1300  # stories before splits are made
TEXTS = 4  # at most, of each topic and module
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


def groups(seed: int) -> Groups:
    """Stories by opening, and texts of a few consecutive paragraphs by topic and module; openings are continued."""
    rng = Random(f"{seed} prose")
    seen: set[str] = set()
    found = drawn("stories.yaml", STORIES, rng)
    for name, texts in paragraphs().items():
        rows = list(joined(fresh(texts, seen)))
        halves = [opened(text) for text in rng.sample(rows, min(TEXTS, len(rows)))]
        found[name] = [[exchange] for exchange in halves if exchange]
    return found


def opened(text: str) -> Exchange | None:
    """A text cut after a sentence near its middle, or None if it has none there."""
    ends = [match.start() for match in SENTENCE.finditer(text)]
    cut = min(ends, key=lambda end: abs(end - len(text) // 2), default=0)
    return Exchange(text[:cut], text[cut:].strip()) if len(text) // 5 < cut < 4 * len(text) // 5 else None


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
