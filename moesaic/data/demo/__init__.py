"""Four built-in text domains that need no download: program text, English prose, arithmetic and dialogue.

Knows which domains and splits there are and deals the rows out; how a domain gets its rows is its module's affair.
"""

from collections.abc import Callable
from copy import deepcopy
from functools import cache
from hashlib import sha256
from platform import python_version
from random import Random

from moesaic.data.demo import code, dialogue, math, prose
from moesaic.errors import DataError, nearest

SIZES = {"train": 1500, "validation": 150, "test": 300}  # at most; code and prose depend on the Python at hand

# Every domain's rows by what must not be torn apart: a module, a topic, a wording. A group never is in two splits.
GROUPS: dict[str, Callable[[int], dict[str, list[dict]]]] = {
    "code": code.groups,
    "prose": prose.groups,
    "math": math.groups,
    "dialogue": dialogue.groups,
}
DOMAINS: tuple[str, ...] = tuple(GROUPS)

PROVENANCE = {
    "code": "Functions of the standard library's own source, read from the running Python {python} and shortened.",
    "prose": "Paragraphs of the language reference (pydoc_data.topics) and of the standard library's documentation "
    "strings, read from the running Python {python} and freed of markup.",
    "math": "Synthetic arithmetic word problems from moesaic's own seeded templates; every answer is computed.",
    "dialogue": "Synthetic conversations from moesaic's own seeded templates; people and places are invented.",
}


def rows(domain: str, split: str, seed: int = 0) -> list[dict]:
    """The rows of one domain and split; the same for the same seed (and, for code and prose, the same Python)."""
    known("domain", domain, DOMAINS)
    known("split", split, tuple(SIZES))
    return deepcopy(dealt(domain, seed)[split])


def provenance(domain: str) -> str:
    """Where the text of a domain comes from, in one sentence."""
    known("domain", domain, DOMAINS)
    return PROVENANCE[domain].format(python=python_version())


def known(kind: str, name: str, names: tuple[str, ...]) -> None:
    """Refuse a name that the demo data does not have."""
    if name not in names:
        hint = nearest(name, list(names))
        raise DataError(f"the demo data has no such {kind}", expected=" or ".join(names), got=name, hint=hint)


@cache
def dealt(domain: str, seed: int) -> dict[str, list[dict]]:
    """The groups of `domain` dealt out: test and validation are filled first, with small groups in a seeded order."""
    groups = GROUPS[domain](seed)
    splits: dict[str, list[dict]] = {split: [] for split in SIZES}
    seen: set[str] = set()
    for name in sorted(groups, key=lambda name: sha256(f"{seed} {name}".encode()).digest()):
        unseen = {text: row for row in groups[name] if (text := folded(row)) not in seen}
        seen |= unseen.keys()
        split = next((split for split in ("test", "validation") if fits(len(unseen), split, splits)), "train")
        splits[split] += unseen.values()
    for split, dealt_rows in splits.items():
        Random(f"{seed} {domain} {split}").shuffle(dealt_rows)
        del dealt_rows[SIZES[split] :]
    return splits


def fits(rows: int, split: str, splits: dict[str, list[dict]]) -> bool:
    """Whether `split` still wants rows, and a group of this many would leave it a mixture."""
    return len(splits[split]) < SIZES[split] and rows <= SIZES[split] // 5


def folded(row: dict) -> str:
    """A row's text as far as a duplicate would share it."""
    return " ".join(str(list(row.values())).casefold().split())
