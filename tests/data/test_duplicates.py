"""Duplicates across splits: the quick search against a naive one, and the demo data, which must have none.

Knows nothing about how the search prunes its pairs.
"""

import json
import random
import re
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic.data import demo
from moesaic.data.duplicates import Duplicate, Key, find_duplicates, summary
from moesaic.data.rows import examples_of
from moesaic.errors import DataError

TRAIN, TEST, OTHER = ("math", "train"), ("math", "test"), ("code", "test")


def naive(texts: dict[Key, list[str]], near: float) -> set[Duplicate]:
    """What `find_duplicates` must find, by comparing every pair of texts."""
    found = set()
    rows = [((*key, index), text) for key, own in texts.items() for index, text in enumerate(own)]
    for (a, one), (b, other) in combinations(rows, 2):
        if a[:2] == b[:2]:
            continue
        if " ".join(one.casefold().split()) == " ".join(other.casefold().split()):
            found.add(Duplicate("exact", a, b, 1.0))
            continue
        first, second = shingles(one), shingles(other)
        if first and second and (similarity := len(first & second) / len(first | second)) >= near:
            found.add(Duplicate("near", a, b, similarity))
    return found


def shingles(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.casefold())
    return {tuple(words[start : start + 5]) for start in range(len(words) - 4)}


# Few different words, so that overlaps of every degree are frequent.
sentences = st.lists(st.sampled_from(["a", "b", "c", "A\tb"]), max_size=12).map(" ".join)
splits = st.dictionaries(st.sampled_from([TRAIN, TEST, OTHER]), st.lists(sentences, max_size=6), max_size=3)


@settings(max_examples=300, deadline=None)
@given(splits, st.sampled_from([0.1, 0.5, 0.75, 0.8, 1.0]))
def test_finds_exactly_what_comparing_every_pair_finds(texts: dict[Key, list[str]], near: float) -> None:
    found = find_duplicates(texts, near)
    assert len(found) == len(set(found))
    assert set(found) == naive(texts, near)


def test_agrees_with_the_naive_search_on_longer_edited_texts() -> None:
    rng = random.Random(0)
    words = [f"word{number}" for number in range(200)]
    originals = [rng.choices(words, k=rng.randint(5, 60)) for _ in range(60)]
    edited = [[rng.choice(words) if rng.random() < 0.03 else word for word in text] for text in originals]
    texts = {TRAIN: [" ".join(text) for text in originals], TEST: [" ".join(text) for text in edited]}
    found = find_duplicates(texts, 0.6)
    assert set(found) == naive(texts, 0.6)
    assert {pair.kind for pair in found} == {"exact", "near"}


def test_case_and_space_do_not_matter_but_a_key_of_its_own_does() -> None:
    texts = {TRAIN: ["Two  and\ntwo", "two and two"], TEST: ["other"], OTHER: ["TWO AND TWO "]}
    assert find_duplicates(texts) == [
        Duplicate("exact", (*TRAIN, 0), (*OTHER, 0), 1.0),
        Duplicate("exact", (*TRAIN, 1), (*OTHER, 0), 1.0),
    ]


def test_nothing_to_compare_is_nothing_found() -> None:
    assert find_duplicates({}) == []
    assert find_duplicates({TRAIN: [], TEST: ["a lonely text of more than five words"]}) == []


@pytest.mark.parametrize("near", [0.0, -1.0, 1.1])
def test_a_threshold_out_of_range_is_refused(near: float) -> None:
    with pytest.raises(DataError, match="threshold"):
        find_duplicates({TRAIN: ["a"]}, near)


def test_summary_counts_by_pair_of_keys_and_can_be_written_as_json() -> None:
    text = "one two three four five six seven eight nine ten eleven twelve"
    found = find_duplicates({TRAIN: [text, text + " more"], TEST: [text.upper()]})
    assert json.loads(json.dumps(summary(found))) == {"math/train ~ math/test": {"exact": 1, "near": 1}}
    assert summary([]) == {}


@pytest.mark.slow
@pytest.mark.usefixtures("hang_limit")
def test_twenty_thousand_rows_are_not_compared_each_with_each() -> None:
    rng = random.Random(0)
    words = [f"{number:05}" for number in range(5000)]
    rows = [" ".join(rng.choices(words, k=83)) for _ in range(18_000)]
    found = find_duplicates({TRAIN: rows, TEST: [f"{row} {words[0]}" for row in rows[:2000]]})
    assert len(found) == 2000


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_the_demo_data_has_no_duplicates_across_splits_and_domains(seed: int) -> None:
    texts = {
        (domain, split): [
            f"{example.prompt}\n{example.response}"
            for number, row in enumerate(demo.rows(domain, split, seed))
            for example in examples_of(row, domain, number)
        ]
        for domain in demo.DOMAINS
        for split in demo.SIZES
    }
    assert summary(find_duplicates(texts)) == {}
