"""Finds equal or similar texts in different splits or domains.

Knows nothing about sources of texts, and ignores duplicates within a split.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Literal

import numpy as np

from moesaic.data.shortlist import MIX, WIDTH, Key, Place, Watch, shortlist
from moesaic.data.words import folded, words
from moesaic.errors import DataError


@dataclass(frozen=True)
class Duplicate:
    """Two similar texts; `similarity` is the share of common shingles, 1.0 for equal texts."""

    kind: Literal["exact", "near"]
    a: Place
    b: Place
    similarity: float


def find_duplicates(texts: Mapping[Key, Sequence[str]], near: float = 0.8, watch: Watch = iter) -> list[Duplicate]:
    """All pairs with different keys whose texts are equal, or whose shingles overlap by `near`.

    Equal texts may differ in case, space and Unicode composition. The overlap is the Jaccard index of shingles of five
    words. The search is exact; a text of fewer than five words has
    only exact duplicates. The pairs, and `a` and `b` in each, follow the order of `texts`. Only texts that may be in a
    pair are in memory together.
    """
    if not 0 < near <= 1:
        raise DataError("the threshold of near duplicates is out of range", expected="0 < near <= 1", got=near)
    places = shortlist(texts, near, watch)
    rank = {place: number for number, place in enumerate(places)}
    equal: dict[str, list[Place]] = {}
    for domain, split, index in places:
        equal.setdefault(folded(texts[domain, split][index]), []).append((domain, split, index))
    groups = list(equal.values())
    pairs = [Duplicate("exact", a, b, 1.0) for group in groups for a, b in combinations(group, 2)]
    for i, j, similarity in similar(shingled(equal), homes(groups), near):
        for a, b in product(groups[i], groups[j]):
            first, second = sorted((a, b), key=rank.__getitem__)
            pairs.append(Duplicate("near", first, second, similarity))
    apart = [pair for pair in pairs if pair.a[:2] != pair.b[:2]]
    return sorted(apart, key=lambda pair: (rank[pair.a], rank[pair.b]))


def summary(duplicates: list[Duplicate]) -> dict[str, dict[str, int]]:
    """Number of pairs of each kind that two keys share: `{"code/train ~ code/test": {"exact": 0, "near": 2}}`."""
    counts = Counter(("/".join(pair.a[:2]) + " ~ " + "/".join(pair.b[:2]), pair.kind) for pair in duplicates)
    return {keys: {kind: counts[keys, kind] for kind in ("exact", "near")} for keys, _ in counts}


def homes(groups: list[list[Place]]) -> np.ndarray:
    """Number of the key of each group of equal texts; -1 for a group with several keys."""
    numbers: dict[Key, int] = {}
    keys = [{place[:2] for place in group} for group in groups]
    return np.array([numbers.setdefault(min(own), len(numbers)) if len(own) == 1 else -1 for own in keys], np.int64)


def shingled(texts: Iterable[str]) -> list[np.ndarray]:
    """Distinct shingles of each text as 64-bit hashes of their words."""
    vocabulary: dict[str, int] = {}
    found = []
    for text in texts:
        numbers = np.array([vocabulary.setdefault(word, len(vocabulary)) for word in words(text)], np.uint64)
        shingles = np.zeros(max(0, len(numbers) - WIDTH + 1), np.uint64)
        for start in range(WIDTH if len(shingles) else 0):
            shingles = (shingles + numbers[start : start + len(shingles)] + np.uint64(1)) * MIX
        found.append(np.unique(shingles))
    return found


def similar(documents: list[np.ndarray], home: np.ndarray, near: float) -> Iterator[tuple[int, int, float]]:
    """Pairs of documents from different homes whose shingles overlap by at least `near`, with their overlap.

    Two similar sets must share one of their rarest shingles, so only these are compared: of n shingles, sorted by
    rarity, the first n - near * n + 1 (the prefix filter of set joins).
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
        step += 1  # compare each entry with the one `step` further, while both have the same shingle
        left = left[left + step < len(owner)]
        left = left[rarity[left] == rarity[left + step]]
        a, b = owner[left], owner[left + step]
        # The shingles from here on bound the overlap if this is the first common shingle; the bound is too strict for
        # later ones, but then the pair is already known.
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
