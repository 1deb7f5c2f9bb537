"""Neutral text: prompts that belong to no expert, by kind and split; routers learn from it what to leave to the base.

Knows nothing about routers. `neutral_text/README.md` says where the text comes from, and its licences.
"""

from collections.abc import Iterator
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Any

import yaml

from moesaic.data.rows import Example
from moesaic.data.splits import SPLITS
from moesaic.files import digest
from moesaic.tokenizer.conversation import Message, plain

KINDS = ("general", "languages", "code", "chat", "noise", "prose")
"""Kinds of neutral text, a file each."""

TENTHS = ("train",) * 6 + ("validation",) * 2 + ("test",) * 2
"""The split of a row, by a tenth of the range of its hash."""


def neutral(split: str) -> dict[str, list[Example]]:
    """The prompts of a split by kind, sorted by the hash of their content; their responses are empty.

    Some topics of every kind occur in validation or in test alone.
    """
    return {kind: [row for of, row in rows(kind) if of == split] for kind in KINDS}


@cache
def identity() -> str:
    """Hash of all neutral text with its splits."""
    return digest([[kind, of, row.prompt] for kind in KINDS for of, row in rows(kind)])


@cache
def rows(kind: str) -> tuple[tuple[str, Example], ...]:
    """All rows of a kind with their splits."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C, where it exists: ten times faster
    found = loader(files("moesaic.data").joinpath("neutral_text", f"{kind}.yaml").read_bytes()).get_single_data()
    return tuple(sorted(read(kind, found), key=lambda one: (one[1].group, one[1].source)))


def read(kind: str, found: dict[str, dict[str, list[Any]]]) -> Iterator[tuple[str, Example]]:
    """The prompts with their splits: a text, or every message of a user with the conversation before it."""
    for reach, topics in found.items():
        for topic, texts in topics.items():
            for row in texts:
                turns = [row] if isinstance(row, str) else row
                split = reach if reach in SPLITS else TENTHS[int(named(turns), 16) * 10 >> 64]
                said = tuple(Message(("user", "assistant")[at % 2], text) for at, text in enumerate(turns))
                for end in range(1, len(said) + 1, 2):
                    before = said[:end] if end > 1 else ()
                    yield split, Example(plain(said[:end]), "", named(turns[:end]), f"neutral/{kind}: {topic}", before)


def named(turns: list[str]) -> str:
    return sha256("\0".join(turns).encode()).hexdigest()[:16]
