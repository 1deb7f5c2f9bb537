"""The documents as what tests look at: fenced blocks, headings, links and units of text.

Knows nothing about what any of them should say.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from generate import PAGES, REGION, ROOT, slug

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!`)\[(?:[^\[\]]|\[[^\[\]]*\])*\]\(([^()\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    language: str
    text: str


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str) -> list[Block]:
    """The fenced blocks of a page that somebody wrote: those of generated regions follow from the code."""
    return [Block(name, match[1], match[2]) for match in FENCE.finditer(REGION.sub("", text_of(name)))]


def all_blocks() -> Iterator[Block]:
    for page in PAGES:
        yield from blocks(name_of(page))


def anchors(page: Path) -> set[str]:
    """What a link may name after the # of a page."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


def links(page: Path) -> list[str]:
    return LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8")))


def units(name: str) -> Iterator[str]:
    """The pieces of a page that stand by themselves: paragraphs, items of lists, rows of tables."""
    text = FENCE.sub("\n", text_of(name))
    for paragraph in re.split(r"\n\s*\n", text):
        yield from re.split(r"\n(?=- |\| )", paragraph)


def rows(name: str, heading: str) -> list[list[str]]:
    """The cells of the table whose heading line begins so."""
    text = text_of(name)
    table = text[text.index(f"\n| {heading} |") + 1 :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table]
