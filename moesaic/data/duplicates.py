"""Finds texts that two splits or two domains share, word for word or nearly so.

Knows nothing about where the texts come from; nothing about one text twice in the same split.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, product
from typing import Literal

import numpy as np

from moesaic.errors import DataError

Key = tuple[str, str]  # (domain, split)
Place = tuple[str, str, int]  # (domain, split, index)

WIDTH = 5  # words in a shingle
WORD = re.compile(r"\w+")
FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, its bits well mixed: makes one number of the words of a shingle


@dataclass(frozen=True)
class Duplicate:
    """One text found at two places; `similarity` is the share of shingles in common, 1.0 where they are equal."""

    kind: Literal["exact", "near"]
    a: Place
    b: Place
    similarity: float


def find_duplicates(texts: dict[Key, list[str]], near: float = 0.8) -> list[Duplicate]:
    """Every pair under different keys that is equal but for case and space, or whose word shingles overlap by `near`.

    The overlap is Jaccard's: shared shingles of five words over all shingles. No pair is missed; a text of fewer than
    five words has only exact duplicates. `a` comes before `b` in the order of `texts`, and so do the pairs.
    """
    if not 0 < near <= 1:
        raise DataError("the threshold of near duplicates is out of range", expected="0 < near <= 1", got=near)
    order = {key: number for number, key in enumerate(texts)}
    places: dict[str, list[Place]] = {}
    for (domain, split), rows in texts.items():
        for index, text in enumerate(rows):
            places.setdefault(" ".join(text.casefold().split()), []).append((domain, split, index))

    alike = list(places.values())
    # Only a text found under several keys can meet its near duplicates in any of them.
    homes = [order[where[0][:2]] if len({place[:2] for place in where}) == 1 else -1 for where in alike]
    near_pairs = similar([shingles for shingles in hashed(places)], np.array(homes, np.int64), near)
    exact = (Duplicate("exact", a, b, 1.0) for where in alike for a, b in combinations(where, 2))
    close = (Duplicate("near", a, b, score) for i, j, score in near_pairs for a, b in product(alike[i], alike[j]))

    def rank(place: Place) -> tuple[int, int]:
        return order[place[:2]], place[2]

    found = [
        pair if rank(pair.a) < rank(pair.b) else Duplicate(pair.kind, pair.b, pair.a, pair.similarity)
        for pair in (*exact, *close)
        if pair.a[:2] != pair.b[:2]
    ]
    return sorted(found, key=lambda pair: (rank(pair.a), rank(pair.b)))


def summary(duplicates: list[Duplicate]) -> dict[str, dict[str, int]]:
    """How many pairs of each kind two keys share: `{"code/train ~ code/test": {"exact": 0, "near": 2}}`."""
    counts = Counter((f"{a} ~ {b}", kind) for a, b, kind in map(named, duplicates))
    return {pair: {kind: counts[pair, kind] for kind in ("exact", "near")} for pair, _ in counts}


def named(duplicate: Duplicate) -> tuple[str, str, str]:
    return "/".join(duplicate.a[:2]), "/".join(duplicate.b[:2]), duplicate.kind
