"""Rows with labels, in every format that they come in; and every row that is refused, with its place."""

import json
from pathlib import Path

import pytest

from moesaic.data import labelled
from moesaic.data.labelled import Labels
from moesaic.data.rejects import Rejects
from moesaic.data.splits import load_domain
from moesaic.errors import DataError
from moesaic.sections.glue import TASKS
from moesaic.sections.sources import LabelledData, Source

MRPC = {"task": "mrpc", "train": "train.jsonl", "test": "test.jsonl", "validation": "train.jsonl"}
OWN = {"columns": ["text"], "train": "train.jsonl", "test": "test.jsonl", "validation": 0.3}


def data(**settings) -> LabelledData:
    return LabelledData.model_validate(settings)


def write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read(folder: Path, name: str, given: LabelledData, labels: Labels | None = None, rejects: Rejects | None = None):
    labels = labels or labelled.labels_of(given, folder.joinpath)
    rows = labelled.read_labelled(Source(path=name), given, labels, folder.joinpath, rejects or Rejects())
    return [row[0] for row in rows]


PAIR = {"sentence1": "A dog ran.", "sentence2": "The dog was running."}


def test_a_row_is_its_texts_line_by_line_and_the_name_of_its_label(tmp_path):
    write(tmp_path / "train.jsonl", [{**PAIR, "label": 1}, {**PAIR, "label": "not_equivalent"}])
    first, second = read(tmp_path, "train.jsonl", data(**MRPC))
    assert first.texts == ("A dog ran.", "The dog was running.") and first.prompt == "\n".join(first.texts)
    assert (first.response, second.response) == ("equivalent", "not_equivalent")
    assert first.group == second.group, "rows of the same texts are one group, whatever their labels"
    assert first.source == "train.jsonl:1"


BAD = {
    "no label": ({**PAIR}, "label", "missing; expected a column label or Quality"),
    "no second text": ({"sentence1": "a", "label": 1}, "sentence2", "missing; expected a column sentence1, sentence2"),
    "an empty text": ({**PAIR, "sentence2": " ", "label": 1}, "sentence2", "only white space"),
    "a label outside the map": ({**PAIR, "label": 2}, "label", "unknown label; expected one of not_equivalent"),
    "a name that is misspelt": ({**PAIR, "label": "equivalnt"}, "label", "did you mean 'equivalent'?"),
    "GLUE's own test": ({**PAIR, "label": -1}, "label", "GLUE does not publish labels of test rows"),
    "null": ({**PAIR, "label": None}, "label", "wrong type; expected an integer or text; got null"),
    "a truth value": ({**PAIR, "label": True}, "label", "wrong type"),
    "a number with a point": ({**PAIR, "label": 1.0}, "label", "wrong type"),
}


@pytest.mark.parametrize(("row", "field", "says"), BAD.values(), ids=BAD.keys())
def test_a_bad_row_is_refused_by_file_line_and_field_or_left_out(tmp_path, row, field, says):
    write(tmp_path / "train.jsonl", [{**PAIR, "label": 0}, row])
    with pytest.raises(DataError) as caught:
        read(tmp_path, "train.jsonl", data(**MRPC))
    assert (caught.value.line, caught.value.field) == (2, field) and says in str(caught.value)
    rejects = Rejects(1)
    assert len(read(tmp_path, "train.jsonl", data(**MRPC), rejects=rejects)) == 1
    assert rejects.listed()[0]["line"] == 2


def test_every_so_many_rows_are_read_and_no_others(tmp_path):
    rows = [{"sentence1": f"a {n}", "sentence2": f"b {n}", "label": n % 2} for n in range(7)]
    write(tmp_path / "train.jsonl", rows)
    given = data(**MRPC | {"train": {"path": "train.jsonl", "every": 3}})
    read_some = labelled.read_labelled(given.train[0], given, None, tmp_path.joinpath, Rejects())
    assert [row[0].source for row in read_some] == ["train.jsonl:1", "train.jsonl:4", "train.jsonl:7"]


def test_a_file_without_a_row_that_can_be_used_is_refused(tmp_path):
    (tmp_path / "train.jsonl").write_text("")
    with pytest.raises(DataError, match="no rows; expected rows with sentence1 and sentence2 and label"):
        read(tmp_path, "train.jsonl", data(**MRPC))


def test_labels_that_nobody_names_are_those_of_train_in_their_order(tmp_path):
    rows = [{"text": f"t{n}", "label": label} for n, label in enumerate((10, 9, -3, 9))]
    write(tmp_path / "train.jsonl", rows)
    labels = labelled.labels_of(data(**OWN), tmp_path.joinpath)
    assert labels.names == ("-3", "9", "10") and labels.name_of(9, "label") == "9"
    write(tmp_path / "test.jsonl", [{"text": "x", "label": 1}])
    with pytest.raises(DataError, match=r"test\.jsonl:1: label: unknown label"):
        read(tmp_path, "test.jsonl", data(**OWN), labels)


def test_an_integer_counts_among_labels_that_are_named(tmp_path):
    labels = Labels(("yes", "no", "2"))
    assert [labels.name_of(value, "label") for value in (0, "no", "1", 2, "2")] == ["yes", "no", "no", "2", "2"]


def test_a_positive_label_that_no_row_has_is_refused_with_those_that_rows_have(tmp_path):
    rows = [{"text": f"a {n}", "label": ("ham", "spam")[n % 2]} for n in range(8)]
    write(tmp_path / "train.jsonl", rows)
    write(tmp_path / "test.jsonl", [{"text": "b", "label": "ham"}])
    assert load_domain("mail", data(**OWN, metric="f1", positive="ham"), tmp_path.joinpath).labels == ("ham", "spam")
    with pytest.raises(DataError, match="positive: unknown label; expected one of ham, spam; got Spam; did you mean"):
        load_domain("mail", data(**OWN, metric="f1", positive="Spam"), tmp_path.joinpath)


def test_rows_that_all_have_one_label_teach_nothing(tmp_path):
    write(tmp_path / "train.jsonl", [{"text": "a", "label": "x"}, {"text": "b", "label": "x"}])
    with pytest.raises(DataError, match="all rows have the same label"):
        labelled.labels_of(data(**OWN), tmp_path.joinpath)


TSV = {
    "sst2": ("sentence\tlabel\nit's \"fine\tfun\t1\n".replace("fine\t", "fine "), ("it's \"fine fun",), "positive"),
    "mrpc": (
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tA dog ran .\tThe dog ran .\n",
        ("A dog ran .", "The dog ran ."),
        "equivalent",
    ),
    "cola": ("gj04\t1\t\tOur friends won't buy this.\n", ("Our friends won't buy this.",), "acceptable"),
    "qnli": ("index\tquestion\tsentence\tlabel\n0\tWho?\tHe.\tentailment\n", ("Who?", "He."), "entailment"),
    "mnli": ("index\tsentence1\tsentence2\tgold_label\n0\ta\tb\tneutral\n", ("a", "b"), "neutral"),
}


@pytest.mark.parametrize(("task", "text", "texts", "label"), [(t, *rest) for t, rest in TSV.items()], ids=TSV)
def test_the_files_of_glue_itself_are_read_with_and_without_a_line_of_names(tmp_path, task, text, texts, label):
    (tmp_path / "train.tsv").write_text(text, encoding="utf-8")
    (row,) = read(tmp_path, "train.tsv", data(task=task, train="train.tsv", test="train.tsv"))
    assert (row.texts, row.response) == (texts, label)


def test_a_line_with_other_fields_than_the_first_names_is_refused(tmp_path):
    (tmp_path / "train.tsv").write_text("sentence\tlabel\nfine\t1\ntorn\n")
    with pytest.raises(DataError, match=r"train\.tsv:3: wrong number of fields; expected 2; got 1"):
        read(tmp_path, "train.tsv", data(task="sst2", train="train.tsv", test="train.tsv"))


def test_parquet_is_read_and_a_damaged_file_refused(tmp_path):
    import pyarrow as arrow
    from pyarrow import parquet

    table = arrow.table({"sentence": ["good", "bad"], "label": [1, 0], "idx": [0, 1]})
    parquet.write_table(table, tmp_path / "train.parquet")
    given = data(task="sst2", train="train.parquet", test="train.parquet")
    assert [row.response for row in read(tmp_path, "train.parquet", given)] == ["positive", "negative"]
    (tmp_path / "train.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="not readable as Parquet"):
        read(tmp_path, "train.parquet", given)


@pytest.mark.parametrize(("source", "module"), [("train.parquet", "pyarrow"), ("hub:train", "datasets")])
def test_without_the_extra_it_is_said_what_to_install(tmp_path, monkeypatch, source, module):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(DataError, match=rf"{module}.*not installed.*moesaic\[datasets\]"):
        read(tmp_path, source, data(task="sst2", train=source, test=source))


def test_the_hub_is_asked_for_the_split_of_the_task(tmp_path, monkeypatch):
    import datasets

    asked = []

    def load(*where, split, streaming):
        assert not streaming
        asked.append((*where, split))
        return datasets.Dataset.from_list([{"sentence": "good", "label": 1, "idx": 0}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    (row,) = read(tmp_path, "hub:train", data(task="sst2", train="hub:train", test="hub:validation"))
    assert row.response == "positive" and asked[0] == ("nyu-mll/glue", "sst2", "train")
    own = data(columns=["sentence"], labels=["no", "yes"], train="hub:me/mine/all/train", test="hub:me/mine/all/test")
    (row,) = read(tmp_path, "hub:me/mine/all/train", own)
    assert row.response == "yes" and asked[1] == ("me/mine", "all", "train")


def test_what_is_judged_on_is_in_no_other_split_whatever_its_label(tmp_path):
    rows = [{"text": f"text {n}", "label": n % 2} for n in range(40)]
    write(tmp_path / "train.jsonl", rows)
    write(tmp_path / "test.jsonl", [{**row, "label": 1 - row["label"]} for row in rows[:5]])
    domain = load_domain("own", data(**OWN), tmp_path.joinpath)
    splits = [{row.group for row in rows} for rows in (domain.train, domain.validation, domain.test)]
    assert [len(a & b) for a in splits for b in splits if a is not b] == [0] * 6
    assert domain.dropped["train: also in test"] + domain.dropped.get("validation: also in test", 0) == 5
    assert domain.labels == ("0", "1")


@pytest.mark.parametrize(
    "task", ["mrpc", *(pytest.param(task, marks=pytest.mark.slow) for task in ("cola", "sst2", "qnli"))]
)
def test_the_real_tasks_are_read(shared, task):
    at = shared / "data" / task
    given = data(task=task, train=str(at / "train.jsonl"), test=str(at / "test.jsonl"))
    domain = load_domain(task, given, Path)
    assert len(domain.train) > 3000 and len(domain.test) > 700
    assert {row.response for row in domain.test} == set(TASKS[task].labels)
