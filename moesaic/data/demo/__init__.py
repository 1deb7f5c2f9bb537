"""Built-in text domains that need no download: program text, English prose, arithmetic, dialogue and cooking.

Distributes rows over splits; knows nothing about the origin of rows, which each domain's module makes.
"""

from collections.abc import Callable
from copy import deepcopy
from functools import cache
from hashlib import sha256
from platform import python_version
from random import Random

from moesaic.data.demo import code, cooking, dialogue, math, prose
from moesaic.data.demo.shapes import Groups, shaped
from moesaic.data.duplicates import find_duplicates
from moesaic.data.rows import examples_of
from moesaic.errors import DataError, nearest

SIZES = {"train": 1500, "validation": 150, "test": 300}  # at most; code and prose depend on the running Python

# Conversations of every domain in groups, a module, a topic or a template each. A group is never in two splits.
GROUPS: dict[str, Callable[[int], Groups]] = {
    "code": code.groups,
    "prose": prose.groups,
    "math": math.groups,
    "dialogue": dialogue.groups,
    "cooking": cooking.groups,
}
DOMAINS: tuple[str, ...] = tuple(GROUPS)

PROVENANCE = {
    "code": "Functions and imports of the standard library's own source, read from the running Python {python} and "
    "shortened, and small functions from moesaic's own seeded templates.",
    "prose": "Stories from moesaic's own seeded templates, and paragraphs of the language reference "
    "(pydoc_data.topics) and of the standard library's documentation strings, read from the running Python {python} "
    "and freed of markup.",
    "math": "Synthetic sums and word problems from moesaic's own seeded templates; every answer is computed.",
    "dialogue": "Synthetic conversations from moesaic's own seeded templates; people and places are invented.",
    "cooking": "Synthetic instructions for cooking from moesaic's own seeded templates.",
}


def rows(domain: str, split: str, seed: int = 0) -> list[dict]:
    """Rows of a domain and split, a function of the seed (and, for code and prose, of the Python version)."""
    known("domain", domain, DOMAINS)
    known("split", split, tuple(SIZES))
    return deepcopy(dealt(domain, seed)[split])


def provenance(domain: str) -> str:
    """Origin of a domain's text, in one sentence."""
    known("domain", domain, DOMAINS)
    return PROVENANCE[domain].format(python=python_version())


def known(kind: str, name: str, names: tuple[str, ...]) -> None:
    if name not in names:
        hint = nearest(name, list(names))
        raise DataError(f"the demo data has no such {kind}", expected=" or ".join(names), got=name, hint=hint)


@cache
def dealt(domain: str, seed: int) -> dict[str, list[dict]]:
    """Rows of `domain` by split: fills test and validation first, with small groups in a seeded order.

    A row that is exactly or nearly in a later split of train, validation and test is left out.
    """
    groups = GROUPS[domain](seed)
    splits: dict[str, list[dict]] = {split: [] for split in SIZES}
    seen: set[str] = set()
    for name in sorted(groups, key=lambda name: sha256(f"{seed} {name}".encode()).digest()):
        rows = shaped(groups[name], f"{seed} {domain} {name}")
        unseen = {text: row for row in rows if (text := folded(row)) not in seen}
        seen |= unseen.keys()
        split = next((split for split in ("test", "validation") if fits(len(unseen), split, splits)), "train")
        splits[split] += unseen.values()
    for split, twins in doubles(splits).items():
        splits[split] = [row for number, row in enumerate(splits[split]) if number not in twins]
    for split, dealt_rows in splits.items():
        Random(f"{seed} {domain} {split}").shuffle(dealt_rows)
        del dealt_rows[SIZES[split] :]
    return splits


def doubles(splits: dict[str, list[dict]]) -> dict[str, set[int]]:
    """Numbers of the rows with an answer that is exactly or nearly in a later split, by split."""
    examples = {
        split: [(number, example) for number, row in enumerate(rows) for example in examples_of(row, split, number)]
        for split, rows in splits.items()
    }
    texts = {("", split): [f"{one.prompt}\n{one.response}" for _, one in some] for split, some in examples.items()}
    found: dict[str, set[int]] = {split: set() for split in splits}
    for _, split, index in (pair.a for pair in find_duplicates(texts)):
        found[split].add(examples[split][index][0])
    return found


def fits(rows: int, split: str, splits: dict[str, list[dict]]) -> bool:
    """Whether `split` needs rows, and a group of this size stays a small part of it."""
    return len(splits[split]) < SIZES[split] and rows <= SIZES[split] // 5


def folded(row: dict) -> str:
    """A row's text without case and spaces, for the search of duplicates."""
    return " ".join(str(list(row.values())).casefold().split())
