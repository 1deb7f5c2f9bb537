"""Rows on disk: what is read back is what was written, and a domain on disk is the domain in memory."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic.data.rows import Example, examples_of, read_rows
from moesaic.data.splits import SPLITS, Domain, load_domain, take
from moesaic.data.stored_rows import ROWS, RowFile, StoredRows, groups_of, packed, store, unpacked
from moesaic.sections.sources import FileData

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(str.strip)
talks = st.lists(texts, min_size=1, max_size=4).map(
    lambda said: {
        "messages": [
            {"role": role, "content": text}
            for at, text in enumerate(said)
            for role, text in (("user", text), ("assistant", f"{at}: {text}"))
        ]
    }
)
pairs = st.fixed_dictionaries(
    {"prompt": texts, "response": texts},
    optional={"correct_answers": st.lists(texts), "incorrect_answers": st.lists(texts)},
)


@settings(deadline=None)
@given(st.one_of(talks, pairs, st.fixed_dictionaries({"text": texts})))
def test_a_row_is_read_back_as_it_was(row: dict) -> None:
    examples = examples_of(row, "folder/rows.jsonl", 7)
    again = unpacked(packed(examples), examples[0].group)
    assert again == examples
    for one, other in zip(again, examples, strict=True):
        assert (one.source, one.correct, one.incorrect) == (other.source, other.correct, other.incorrect)
        assert one.told == other.told


def test_a_row_with_a_label_is_read_back_as_it_was() -> None:
    row = [Example("one\ntwo", "yes", "00000000000000ff", "pairs.tsv:3", texts=("one", "two"))]
    assert unpacked(packed(row), row[0].group) == row


@pytest.fixture
def data(tmp_path: Path) -> FileData:
    def conversation(n: int) -> dict:
        turns = [("user", f"ask {n}"), ("assistant", f"say {n}"), ("user", "and?"), ("assistant", f"more {n}")]
        return {"messages": [{"role": role, "content": text} for role, text in turns]}

    rows = [conversation(n) if n % 3 else {"prompt": f"one {n}", "response": f"two {n}"} for n in range(60)]
    for name, some in (("train", [*rows, *rows[:5]]), ("test", [*rows[:6], {"text": "of its own"}])):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in some))
    return FileData(train="train", test="test", validation=0.2)


def on_disk(data: FileData, folder: Path) -> Domain:
    with RowFile(folder / ROWS) as shelf:
        domain = load_domain("math", data, folder.joinpath, shelf=shelf)
    store(folder, {split: getattr(domain, split) for split in SPLITS})
    return domain


def test_a_domain_on_disk_is_the_domain_in_memory(data: FileData, tmp_path: Path) -> None:
    held, kept = load_domain("math", data, tmp_path.joinpath), on_disk(data, tmp_path)
    assert held == kept and held.digest == kept.digest and kept.dropped["train: repeated"] == 5
    for split in SPLITS:
        again, rows = StoredRows.open(tmp_path, split), getattr(held, split)
        assert again == rows and len(again) == len(rows)
        assert [*again] == rows and [*groups_of(again)] == [row.group for row in rows]
        assert take(again, 7) == take(rows, 7)
        assert again[3:-2] == rows[3:-2] and [again[at] for at in range(-len(rows), len(rows))] == rows * 2
        with pytest.raises(IndexError):
            again[len(rows)]


def test_rows_without_some_are_others_by_name(data: FileData, tmp_path: Path) -> None:
    on_disk(data, tmp_path)
    rows = StoredRows.open(tmp_path, "train")
    groups = [*dict.fromkeys(row.group for row in rows)]
    left = rows.without({groups[0], groups[4], "0123456789abcdef"})
    assert [*left] == [row for row in rows if row.group not in (groups[0], groups[4])]
    assert left.name not in (rows.name, rows.without({groups[0]}).name)
    assert left.name == rows.without({groups[4], groups[0]}).name and rows.without({"0123456789abcdef"}) is rows


def test_training_rows_of_another_domains_test_are_dropped_alike(data: FileData, tmp_path: Path) -> None:
    held, kept = load_domain("math", data, tmp_path.joinpath), on_disk(data, tmp_path)
    judged = {held.train[0].group, held.train[-1].group, "0123456789abcdef"}
    one, other = held.without(judged), kept.without(judged)
    assert one == other and one.digest == other.digest != held.digest
    assert one.dropped["train: in another domain's test"] == 2


def test_many_rows_are_written_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moesaic.data.stored_rows.TOGETHER", 100)
    monkeypatch.setattr("moesaic.data.stored_rows.BLOCK", 4)
    (tmp_path / "rows").write_text("".join(json.dumps({"text": f"text {n}"}) + "\n" for n in range(50)))
    rows = read_rows(tmp_path / "rows")
    with RowFile(tmp_path / ROWS) as shelf:
        kept = shelf.sorted({row[0].group: shelf.add(row) for row in rows})
    assert [*kept.rows()] == sorted(rows, key=lambda row: row[0].group)
