import csv
import io
import json

import pytest

from moesaic.data.containers import rows_of
from moesaic.data.rows import read_examples
from moesaic.errors import DataError

ROWS = [{"prompt": f"ask {n}", "response": f'say "{n}", twice,\tand\nagain'} for n in range(5)]


def table(mark: str) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, ["prompt", "response"], delimiter=mark)
    writer.writeheader()
    writer.writerows(ROWS)
    return out.getvalue().encode()


FORMS = {
    "rows.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS).encode(),
    "rows.json": json.dumps(ROWS).encode(),
    "indented.json": json.dumps(ROWS, indent=2).encode(),
    "rows.csv": table(","),
    "semicolons.csv": table(";"),
    "rows.tsv": table("\t"),
}


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize(("name", "content"), FORMS.items(), ids=FORMS)
def test_every_format_gives_the_same_rows(tmp_path, name, content, mark):
    (tmp_path / name).write_bytes(mark + content)
    assert [one.row for one in rows_of(tmp_path / name)] == ROWS
    assert read_examples(tmp_path / name) == read_examples_of(tmp_path)


def read_examples_of(folder):
    (folder / "plain.jsonl").write_bytes(FORMS["rows.jsonl"])
    return read_examples(folder / "plain.jsonl")


def test_parquet_gives_the_same_rows(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    assert [one.row for one in rows_of(tmp_path / "rows.parquet")] == ROWS


def test_quotes_that_do_not_surround_a_field_are_characters(tmp_path):
    (tmp_path / "rows.tsv").write_text('text\tlabel\na 5" nail\t1\n"so" she said\t0\n')
    assert [one.row["text"] for one in rows_of(tmp_path / "rows.tsv")] == ['a 5" nail', '"so" she said']


def test_rows_are_read_one_by_one(tmp_path):
    (tmp_path / "rows.json").write_bytes(json.dumps(ROWS).encode()[:-1] + b", {damaged")
    given = rows_of(tmp_path / "rows.json")
    assert [next(given).row for _ in ROWS[:-1]] == ROWS[:-1]
    with pytest.raises(DataError, match=r"row 6 of the list"):
        next(given), next(given)
