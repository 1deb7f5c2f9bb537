import json
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesaic.data import splits
from moesaic.data.rows import Example
from moesaic.data.splits import SPLITS, Domain, carved, load_domain, load_source, load_unseen, take
from moesaic.errors import DataError
from moesaic.sections.sources import DemoData, FileData, Source


def numbered(*numbers: int) -> list[dict]:
    return [{"prompt": f"ask {n}", "response": f"say {n}"} for n in numbers]


def conversation(n: int) -> dict:
    turns = [("user", f"ask {n}"), ("assistant", f"say {n}"), ("user", "and?"), ("assistant", f"more {n}")]
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


class Files:
    """Rows as files in a folder; `load` makes a domain of them."""

    def __init__(self, folder: Path):
        self.folder = folder

    def put(self, **files: list[dict]) -> "Files":
        for name, rows in files.items():
            (self.folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return self

    def load(self, **data) -> Domain:
        return load_domain("math", FileData(**{"train": "train", "test": "test"} | data), self.folder.joinpath)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def said(examples: list[Example]) -> set[str]:
    return {example.response for example in examples}


def test_splits_are_the_files_rows_sorted_by_hash(files):
    domain = files.put(train=numbered(*range(9)), val=numbered(20, 21), test=numbered(30)).load(validation="val")
    assert (domain.name, domain.dropped) == ("math", {})
    assert [len(domain.train), len(domain.validation), len(domain.test)] == [9, 2, 1]
    assert said(domain.train) == {f"say {n}" for n in range(9)}
    assert [row.group for row in domain.train] == sorted(row.group for row in domain.train)


def test_no_order_of_rows_or_files_matters(files):
    rows = numbered(*range(300))
    first = files.put(a=rows[:100], b=rows[100:], test=numbered(*range(300, 310))).load(train=["a", "b"])
    random.Random(0).shuffle(rows)
    files.put(a=rows[:200], b=rows[200:])
    for order in (["a", "b"], ["b", "a"]):
        again = files.load(train=order)
        assert again == first and again.digest == first.digest
    assert 15 < len(first.validation) < 45 and len(first.train) + len(first.validation) == 300


def test_more_rows_leave_the_carved_ones_where_they_were(files):
    fewer = files.put(train=numbered(*range(200)), test=numbered(999)).load()
    more = files.put(train=numbered(*range(300))).load()
    assert said(fewer.validation) <= said(more.validation) and said(fewer.train) <= said(more.train)


def test_a_conversation_stays_whole_and_in_order(files):
    domain = files.put(train=[conversation(n) for n in range(60)], test=numbered(999)).load(validation=0.5)
    for split in (domain.train, domain.validation):
        assert split and set(Counter(row.group for row in split).values()) == {2}
        assert [row.response[:3] for row in split] == ["say", "mor"] * (len(split) // 2)
    assert not {row.group for row in domain.train} & {row.group for row in domain.validation}


def test_a_limit_takes_the_first_whole_rows_and_reads_nothing_behind_them(files):
    files.put(train=[conversation(n) for n in range(60)], test=numbered(999))
    some = load_source([Source(path="train", limit=10)], files.folder.joinpath)
    more = load_source([Source(path="train", limit=20)], files.folder.joinpath)
    assert len(some) == 20 and said(some) < said(more)
    assert said(some) == {f"{word} {n}" for n in range(10) for word in ("say", "more")}
    assert len(load_source([Source(path="train", limit=99)], files.folder.joinpath)) == 120
    with (files.folder / "train").open("a") as file:
        file.write("damaged\n")
    assert load_source([Source(path="train", limit=60)], files.folder.joinpath)


def test_every_so_many_rows_are_read_and_no_others(files):
    files.put(train=numbered(*range(30)), test=numbered(999))
    whole, some, few = (
        load_source([Source(path="train", **keys)], files.folder.joinpath)
        for keys in ({}, {"every": 7}, {"every": 7, "limit": 3})
    )
    lines = {int(example.source.split(":")[1]): example for example in whole}
    assert len(lines) == 30
    assert {int(example.source.split(":")[1]) for example in some} == {*range(1, 31, 7)}
    assert {int(example.source.split(":")[1]) for example in few} == {1, 8, 15}
    domain = files.load(train={"path": "train", "every": 7})
    assert len(domain.train) + len(domain.validation) == len(some)


def test_a_share_of_a_limited_train_is_that_share(files):
    files.put(train=numbered(*range(3000)), test=numbered(9999))
    domain = files.load(train={"path": "train", "limit": 200}, validation=0.2)
    assert 20 < len(domain.validation) < 60


@given(st.sets(st.integers(0, 10**6), min_size=2, max_size=12), st.sampled_from([1e-6, 0.1, 0.5, 0.999999]))
def test_a_share_of_two_rows_or_more_is_neither_empty_nor_all(tmp_path_factory, numbers, share):
    files = Files(tmp_path_factory.mktemp("share")).put(train=numbered(*numbers), test=numbered(min(numbers), -1))
    if len(numbers) > 2:
        domain = files.load(validation=share)
        assert domain.train and domain.validation
    assert 0 < len(carved([str(number) for number in numbers], share)) < len(numbers)


def test_what_is_repeated_or_shared_is_dropped_and_counted(files):
    files.put(train=numbered(1, 1, 2, 3, 4, 5), more=numbered(5, 6), val=numbered(7, 7, 4, 3), test=numbered(3, 2, 2))
    domain = files.load(train=["train", "more"], validation="val")
    assert said(domain.test) == {"say 2", "say 3"}
    assert said(domain.validation) == {"say 4", "say 7"}
    assert said(domain.train) == {"say 1", "say 5", "say 6"}
    assert domain.dropped == {
        "train: repeated": 2,
        "validation: repeated": 1,
        "test: repeated": 1,
        "validation: also in test": 1,
        "train: also in test": 2,
        "train: also in validation": 1,
    }


@given(*[st.lists(st.integers(0, 30), min_size=1, max_size=25)] * 3, st.booleans())
def test_the_counts_add_up(tmp_path_factory, train, validation, test, carve):
    files = Files(tmp_path_factory.mktemp("rows"))
    files.put(train=numbered(*train), val=numbered(*validation), test=numbered(*test))
    try:
        domain = files.load(validation=0.3 if carve else "val")
    except DataError as error:
        assert "no rows left" in str(error)
        return
    kept = [said(getattr(domain, split)) for split in SPLITS]
    assert len(set.union(*kept)) == sum(map(len, kept)), "no row in two splits"
    given_rows = len(train) + len(test) + (0 if carve else len(validation))
    assert given_rows == sum(map(len, kept)) + sum(domain.dropped.values())
    assert set.union(*kept) == {f"say {n}" for n in {*train, *test, *([] if carve else validation)}}


@pytest.mark.parametrize(
    ("rows", "validation", "split", "says"),
    [
        ({"train": [1, 2], "test": [1, 2]}, 0.5, "train", "also in test"),
        ({"train": [1, 2], "val": [3], "test": [1, 2, 2]}, "val", "train", "test: repeated: 1 rows, train: also in"),
        ({"train": [1, 2], "val": [3], "test": [3]}, "val", "validation", "validation: also in test: 1 rows"),
        ({"train": [1], "test": [2]}, 0.001, "validation", "name a file for validation"),
        ({"train": [1], "test": [2]}, 0.999, "train", "name a file for validation"),
    ],
)
def test_a_split_without_rows_is_refused(files, rows, validation, split, says):
    files.put(**{name: numbered(*numbers) for name, numbers in rows.items()})
    with pytest.raises(DataError) as caught:
        files.load(validation=validation)
    where = "val" if split == "validation" and isinstance(validation, str) else "train"
    assert f"{files.folder / where}: {split}: domain 'math' has no rows left for {split}" in str(caught.value)
    assert says in str(caught.value)


def test_a_bad_row_is_found_in_its_file(files):
    files.put(train=numbered(1, 2), test=[*numbered(3), {"prompt": "a"}])
    with pytest.raises(DataError, match=r"test:2: response: missing"):
        files.load()


def test_the_digest_names_the_content_alone(files):
    files.put(train=numbered(*range(9)), val=numbered(20), test=numbered(30))
    domain = files.load(validation="val")
    assert domain.digest == Domain("code", domain.train, domain.validation, domain.test, {"x": 1}).digest
    assert domain.digest == files.put(test=numbered(31)).load(validation="val").digest, "nothing is learned from test"
    assert domain.digest != Domain("math", domain.train, domain.test, domain.validation, {}).digest


def test_unseen_text_is_of_files_or_the_test_rows_of_a_built_in_domain(files):
    files.put(train=numbered(*range(20)))
    sources = [Source(path="train", limit=10)]
    assert load_unseen(sources, files.folder.joinpath) == load_source(sources, files.folder.joinpath)
    rows = load_unseen(DemoData(demo="cooking"), Path)
    assert rows == load_domain("kitchen", DemoData(demo="cooking"), Path).test
    assert len({row.group for row in rows}) == len(splits.demo.rows("cooking", "test"))


def test_the_demo_data_is_split_already(monkeypatch):
    given_rows = {"train": numbered(1, 1, 2, 3), "validation": numbered(4), "test": numbered(3, 5)}
    monkeypatch.setattr(splits.demo, "rows", lambda domain, split: given_rows[split] if domain == "prose" else [])
    domain = load_domain("books", DemoData(demo="prose"), Path)
    assert [said(getattr(domain, split)) for split in SPLITS] == [{"say 1", "say 2"}, {"say 4"}, {"say 3", "say 5"}]
    assert domain.dropped == {"train: repeated": 1, "train: also in test": 1}
    given_rows["test"] = [*numbered(1), {"text": 3}]
    with pytest.raises(DataError, match=r"demo prose test:2: text: wrong type"):
        load_domain("books", DemoData(demo="prose"), Path)
    with pytest.raises(DataError, match=r"demo code: train: domain 'books' has no rows left"):
        load_domain("books", DemoData(demo="code"), Path)


@pytest.mark.slow
@pytest.mark.parametrize("domain", ["code", "prose", "math", "dialogue"])
def test_each_demo_domain_loads(domain):
    loaded = load_domain(domain, DemoData(demo=domain), Path)
    assert min(len(loaded.train), len(loaded.validation), len(loaded.test)) > 50


def test_taking_some_is_stable_and_unbiased():
    rows = [Example("p", f"{group} {i}", str(group)) for group in range(100) for i in range(3)]
    some = take(rows, 60)
    assert take(rows, 120)[:60] == some and take(some, 999) != rows
    assert sorted(take(rows, 999), key=rows.index) == rows
    by_group = [row for group in reversed(range(100)) for row in rows[3 * group : 3 * group + 3]]
    assert take(by_group, 60) == some
    assert 10 < sum(int(row.group) < 50 for row in some) < 50
    assert all(8 < count < 32 for count in Counter(row.response.split()[1] for row in some).values())


def test_repeated_texts_are_taken_one_by_one():
    assert len(take([Example("p", "r", "g")] * 5, 3)) == 3


def test_a_domain_without_what_another_is_judged_on_loses_whole_rows_of_training_and_counts_them():
    talk = [Example("ask", "say", "talk"), Example("ask say and", "more", "talk")]
    own = [Example("one", "1", "own")]
    domain = Domain("code", [*talk, *own], [Example("two", "2", "validation")], [Example("x", "y", "test")], {"x": 1})
    found = domain.without({"talk", "elsewhere"})
    assert found.train == own and (found.validation, found.test) == (domain.validation, domain.test)
    assert found.dropped == {"x": 1, "train: in another domain's test": 1}
    assert domain.without({"elsewhere"}) == domain
