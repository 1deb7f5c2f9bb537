"""The texts that may have duplicates: every one that has, in pieces of any size, and hardly any other."""

import random
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic.data import shortlist as of
from moesaic.data.duplicates import find_duplicates
from moesaic.data.shortlist import Key, continues, shortlist
from moesaic.data.words import folded, words

TRAIN, TEST, OTHER = ("math", "train"), ("math", "test"), ("code", "test")
sentences = st.lists(st.sampled_from(["a", "b", "c", "A\tb", "- 5", "d.", "e -"]), min_size=1, max_size=9).map(" ".join)
talks = st.lists(sentences, min_size=1, max_size=4).map(
    lambda said: ["\nUser:\n".join(said[: end + 1]) for end in range(len(said))]
)
rows = st.lists(talks, max_size=4).map(lambda some: [text for talk in some for text in talk])
splits = st.dictionaries(st.sampled_from([TRAIN, TEST, OTHER]), rows, max_size=3)


def shingles(text: str) -> set[tuple[str, ...]]:
    found = words(text)
    return {tuple(found[start : start + 5]) for start in range(len(found) - 4)}


def paired(texts: dict[Key, list[str]], near: float) -> set[tuple[str, str, int]]:
    """The texts of all pairs, by comparing every text with every other."""
    every = [((*key, at), folded(text), shingles(text)) for key, some in texts.items() for at, text in enumerate(some)]
    found = set()
    for (a, one, first), (b, other, second) in combinations(every, 2):
        alike = one == other or (first | second and len(first & second) >= near * len(first | second))
        if a[:2] != b[:2] and alike:
            found |= {a, b}
    return found


@settings(max_examples=200, deadline=None)
@given(splits, st.sampled_from([0.1, 0.5, 0.8, 1.0]), st.sampled_from([1, 7, 1 << 19]), st.sampled_from([2, 1 << 21]))
def test_every_text_of_a_pair_is_listed(texts: dict[Key, list[str]], near: float, piece: int, together: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(of, "PIECE", piece)
        patch.setattr(of, "TOGETHER", together)
        listed = shortlist(texts, near)
        found = find_duplicates(texts, near)
    assert len(listed) == len({*listed}) and paired(texts, near) <= {*listed}
    assert {place for pair in found for place in (pair.a, pair.b)} == paired(texts, near)


def test_texts_that_share_little_are_not_listed_and_their_shingles_lie_on_disk(monkeypatch) -> None:
    monkeypatch.setattr(of, "PIECE", 500)
    monkeypatch.setattr(of, "TOGETHER", 1000)
    draw = random.Random(0)
    kept = list[bool]()
    ranges = of.Shingles._ranges

    def watched(self):
        kept.extend(isinstance(piece, np.memmap) for piece in self.pieces[:-1])
        for entries in ranges(self):
            assert len(entries) < 2500
            yield entries

    monkeypatch.setattr(of.Shingles, "_ranges", watched)
    texts = {key: [" ".join(draw.choices("abcdefgh", k=40)) for _ in range(300)] for key in (TRAIN, TEST)}
    texts[TEST][7] = texts[TRAIN][250]
    assert shortlist(texts, 0.8) == [(*TRAIN, 250), (*TEST, 7)]
    assert len(kept) > 20 and all(kept)


@pytest.mark.parametrize(
    ("last", "rest", "expected"),
    [
        ("so it is.", "\nUser:\nand", True),
        ("so it is -", "\nUser:", False),
        ("so", "\n- 5", False),
        ("so", " on", False),
    ],
)
def test_a_text_continues_another_where_no_word_depends_on_both(last: str, rest: str, expected: bool) -> None:
    assert continues(last + rest, last) is expected
    if expected:
        assert words(last + rest) == words(last) + words(rest)


def test_nothing_has_no_duplicates(tmp_path: Path) -> None:
    assert shortlist({}, 0.8) == [] and shortlist({TRAIN: [], TEST: [""]}, 0.8) == []
