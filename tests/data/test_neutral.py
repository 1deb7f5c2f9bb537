"""Neutral text: free of doubles between splits, with topics that only judging knows, and small."""

from importlib.resources import files

import pytest

from moesaic.data.neutral import KINDS, SPLITS, neutral

EVERY = [(split, kind) for split in SPLITS for kind in KINDS]


@pytest.mark.parametrize(("split", "kind"), EVERY)
def test_every_kind_has_rows_in_every_split(split: str, kind: str):
    rows = neutral(split)[kind]
    assert rows and all(row.prompt.strip() and not row.response for row in rows)


def test_no_row_is_in_two_splits_or_twice_in_one():
    groups = [row.group for split in SPLITS for rows in neutral(split).values() for row in rows]
    assert len(groups) == len(set(groups))


@pytest.mark.parametrize("kind", KINDS)
def test_some_topics_of_the_test_split_are_unknown_to_the_others(kind: str):
    topics = {split: {row.source for row in neutral(split)[kind]} for split in SPLITS}
    assert topics["test"] - topics["train"] - topics["validation"]
    assert topics["validation"] - topics["train"]


def test_it_stays_below_300_kb_and_says_its_licences_beside_it():
    folder = files("moesaic.data").joinpath("neutral_text")
    found = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert set(found) == {"README.md", *(f"{kind}.yaml" for kind in KINDS)}
    assert sum(map(len, found.values())) < 300_000
    assert b"licence" in found["README.md"] and b"NC" not in found["README.md"].split(b"|")
