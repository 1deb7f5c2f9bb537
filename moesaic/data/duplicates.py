"""Finds texts that two splits or two domains share, word for word or nearly so.

Knows nothing about where the texts come from; nothing about one text twice in the same split.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations, product
from typing import Literal

import numpy as np

from moesaic.errors import DataError

Key = tuple[str, str]  # (domain, split)
Place = tuple[str, str, int]  # (domain, split, index)

WIDTH = 5  # words in a shingle
WORD = re.compile(r"\w+")
MIX = np.uint64(0x9E3779B97F4A7C15)  # odd, its bits well spread: makes one number of the words of a shingle


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
    five words has only exact duplicates. `a` comes before `b` in the order of `texts`, and the pairs follow it, too.
    """
    if not 0 < near <= 1:
        raise DataError("the threshold of near duplicates is out of range", expected="0 < near <= 1", got=near)
    rank = {(*key, index): number for number, (key, index) in enumerate(places(texts))}
    equal: dict[str, list[Place]] = {}
    for key, index in places(texts):
        equal.setdefault(" ".join(texts[key][index].casefold().split()), []).append((*key, index))
    groups = list(equal.values())
    pairs = [Duplicate("exact", a, b, 1.0) for group in groups for a, b in combinations(group, 2)]
    for i, j, similarity in similar(shingled(equal), homes(groups), near):
        for a, b in product(groups[i], groups[j]):
            first, second = sorted((a, b), key=rank.__getitem__)
            pairs.append(Duplicate("near", first, second, similarity))
    apart = [pair for pair in pairs if pair.a[:2] != pair.b[:2]]
    return sorted(apart, key=lambda pair: (rank[pair.a], rank[pair.b]))


def summary(duplicates: list[Duplicate]) -> dict[str, dict[str, int]]:
    """How many pairs of each kind two keys share: `{"code/train ~ code/test": {"exact": 0, "near": 2}}`."""
    counts = Counter(("/".join(pair.a[:2]) + " ~ " + "/".join(pair.b[:2]), pair.kind) for pair in duplicates)
    return {keys: {kind: counts[keys, kind] for kind in ("exact", "near")} for keys, _ in counts}


def places(texts: dict[Key, list[str]]) -> Iterator[tuple[Key, int]]:
    """Every key with every index of its texts."""
    return ((key, index) for key, rows in texts.items() for index in range(len(rows)))


def homes(groups: list[list[Place]]) -> np.ndarray:
    """A number for the key of each group of equal texts, and -1 for a group found under several keys."""
    numbers: dict[Key, int] = {}
    keys = [{place[:2] for place in group} for group in groups]
    return np.array([numbers.setdefault(min(own), len(numbers)) if len(own) == 1 else -1 for own in keys], np.int64)


def shingled(texts: Iterable[str]) -> list[np.ndarray]:
    """The different shingles of each text, every one as a 64-bit number that stands for its words."""
    vocabulary: dict[str, int] = {}
    found = []
    for text in texts:
        words = WORD.findall(text)
        numbers = np.array([vocabulary.setdefault(word, len(vocabulary)) for word in words], np.uint64)
        shingles = np.zeros(max(0, len(words) - WIDTH + 1), np.uint64)
        for start in range(WIDTH if len(shingles) else 0):
            shingles = (shingles + numbers[start : start + len(shingles)] + np.uint64(1)) * MIX
        found.append(np.unique(shingles))
    return found


def similar(documents: list[np.ndarray], home: np.ndarray, near: float) -> Iterator[tuple[int, int, float]]:
    """The pairs of documents from different homes whose shingles overlap by at least `near`, and how much they do.

    Two sets that share enough must meet among the rarest shingles of both, so only these are compared: with sets of
    n shingles each, in the same order, it takes one of the first n - near * n + 1 (the prefix filter of set joins).
    """
    sizes = np.array([len(document) for document in documents], np.int64)
    if not sizes.sum():
        return
    owner = np.repeat(np.arange(len(documents)), sizes)
    _, number, count = np.unique(np.concatenate(documents), return_inverse=True, return_counts=True)
    rarity = np.argsort(np.argsort(count, kind="stable"), kind="stable")[number]
    by_rarity = np.lexsort((rarity, owner))
    owner, rarity, count = owner[by_rarity], rarity[by_rarity], count[number][by_rarity]
    position = np.arange(len(owner)) - (np.cumsum(sizes) - sizes)[owner]
    prefix = (position < sizes[owner] - np.ceil(near * sizes[owner] - 1e-9) + 1) & (count > 1)
    owner, rarity, position = owner[prefix], rarity[prefix], position[prefix]

    by_shingle = np.lexsort((owner, rarity))
    owner, rarity, position = owner[by_shingle], rarity[by_shingle], position[by_shingle]
    candidates = [np.empty(0, np.int64)]
    left, step = np.arange(len(owner)), 0
    while len(left):
        step += 1  # each entry is compared with the one `step` places on, as long as that has the same shingle
        left = left[left + step < len(owner)]
        left = left[rarity[left] == rarity[left + step]]
        a, b = owner[left], owner[left + step]
        # What both have from here on bounds what they share, if this is the first shingle in common; later ones are
        # judged too strictly, but by then the pair is known.
        bound = np.minimum(sizes[a] - position[left], sizes[b] - position[left + step])
        enough = bound >= near / (1 + near) * (sizes[a] + sizes[b]) - 1e-9
        apart = (home[a] != home[b]) | (home[a] < 0)
        candidates.append((a * len(documents) + b)[enough & apart])
        if step % 64 == 0:
            candidates = [np.unique(np.concatenate(candidates))]

    pairs = np.unique(np.concatenate(candidates))
    met = np.unique([pairs // len(documents), pairs % len(documents)]).tolist()
    sets = {document: frozenset(documents[document].tolist()) for document in met}
    for i, j in (divmod(pair, len(documents)) for pair in pairs.tolist()):
        shared = len(sets[i] & sets[j])
        similarity = shared / (len(sets[i]) + len(sets[j]) - shared)
        if similarity >= near:
            yield i, j, similarity
