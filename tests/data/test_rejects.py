"""Bad rows left out: what stands around them is used unchanged; each is told with file, line, field and text."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_rows import DEFECTS, FILES, GOOD, extra, single

from moesaic.data import containers
from moesaic.data.rejects import TEXT_LIMIT, Rejects
from moesaic.data.rows import read_examples, read_rows
from moesaic.data.splits import load_domain, load_source
from moesaic.errors import DataError
from moesaic.sections.sources import DemoData, FileData, Source

# Files that can be used but for one row, which stands in the line given.
ONE_BAD: dict[str, tuple[bytes, int, str]] = {
    "cut off": (GOOD + GOOD[:20], 2, "not JSON"),
    "cut off inside a character": (GOOD + '{"text": "é'.encode()[:-1], 2, "not UTF-8"),
    "first line blank": (b"\n" + GOOD, 1, "a blank line between rows"),
    "a comment first": (b"# rows\n" + GOOD, 1, "not JSON"),
    "a NUL in the first line": (b'{"text": "\0"}\n' + GOOD, 1, "not JSON"),
    "a mark, then a bad row": (containers.BOM + b"3\n" + GOOD, 1, "not a row"),
    "a mark in the second line": (GOOD + containers.BOM + GOOD, 2, "not JSON"),
    "Windows line ends": (GOOD.replace(b"\n", b"\r\n") + b"{}\r\n" + GOOD, 2, "unknown shape of row"),
    "blank lines at the end": (GOOD + b"{}\n\n \r\n", 2, "unknown shape of row"),
}


def numbered(n: int) -> bytes:
    return b'{"prompt": "ask %d", "response": "say"}\n' % n


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows.jsonl"


@pytest.mark.parametrize(("line", "field", "says"), DEFECTS.values(), ids=DEFECTS.keys())
def test_a_bad_row_is_left_out_and_told(path, line, field, says):
    path.write_bytes(numbered(1) + numbered(2) + line + b"\n" + numbered(4) + numbered(5))
    rejects = Rejects(1)
    read = read_rows(path, rejects)
    assert [row[0].prompt for row in read] == ["ask 1", "ask 2", "ask 4", "ask 5"]
    assert [row[0].source for row in read] == [f"rows.jsonl:{n}" for n in (1, 2, 4, 5)]
    (told,) = rejects.listed()
    assert (told["path"], told["line"], told["field"]) == (str(path), 3, field)
    assert "rows.jsonl" not in told["reason"]
    assert says.partition("; ")[0].strip("'") in told["reason"]
    assert told["text"] == line.decode(errors="replace")[:TEXT_LIMIT].strip(" \t")
    (counts,) = rejects.files().values()
    assert (counts["read"], counts["used"], sum(counts["skipped"].values())) == (5, 4, 1)


@pytest.mark.parametrize(("content", "line", "says"), ONE_BAD.values(), ids=ONE_BAD.keys())
def test_one_bad_row_does_not_spoil_a_file(path, content, line, says):
    path.write_bytes(content)
    rejects = Rejects(1)
    assert {row[0].prompt for row in read_rows(path, rejects)} == {"ask"}
    (told,) = rejects.listed()
    assert told["line"] == line and told["reason"].startswith(says)
    with pytest.raises(DataError, match=says) as caught:
        read_rows(path)
    assert (caught.value.line, caught.value.exit_code) == (line, 3)


def test_all_defects_in_one_file(path):
    """Whatever a defect is, the next row is read from its own line on."""
    path.write_bytes(b"".join(numbered(n) + line + b"\n" for n, (line, _, _) in enumerate(DEFECTS.values())) + GOOD)
    rejects = Rejects(len(DEFECTS))
    read = read_rows(path, rejects)
    assert [row[0].prompt for row in read] == [*(f"ask {n}" for n in range(len(DEFECTS))), "ask"]
    assert [told["line"] for told in rejects.listed()] == [*range(2, 2 * len(DEFECTS) + 1, 2)]
    assert [told["field"] for told in rejects.listed()] == [field for _, field, _ in DEFECTS.values()]
    (counts,) = rejects.files().values()
    assert counts["skipped"]["missing"] == 4 and counts["skipped"]["wrong type"] == 9, "by reason, whatever the field"


LIMIT = 50_000
too_long = st.integers(LIMIT, 4 * LIMIT).map(lambda n: b" " * n)
short = [line for line, _, _ in DEFECTS.values() if len(line) < LIMIT and not line.startswith(containers.BOM)]
defect = st.sampled_from(short) | too_long  # a mark is a defect but in the first line
good = st.tuples(single, extra).map(lambda drawn: json.dumps(drawn[0][0] | drawn[1]).encode())


@given(
    st.lists(st.tuples(st.booleans(), good, defect), max_size=8),
    good,
    st.sampled_from([b"\n", b"\r\n"]),
    st.sampled_from([b"", containers.BOM]),
    st.sampled_from([b"", b"\n", b"\n\n \n"]),
)
def test_any_mix_is_read_as_the_file_without_its_bad_rows(tmp_path_factory, drawn, last, end, mark, tail):
    folder = tmp_path_factory.mktemp("mix")
    lines = [sound if is_good else broken for is_good, sound, broken in drawn] + [last]
    sound = [line for line, (is_good, _, _) in zip(lines, drawn, strict=False) if is_good] + [last]
    (folder / "mixed").write_bytes(mark + end.join(lines) + tail)
    (folder / "sound").write_bytes(b"\n".join(sound))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(containers, "LINE_LIMIT", LIMIT)
        rejects = Rejects(8)
        read = read_rows(folder / "mixed", rejects)
        assert read == read_rows(folder / "sound")
    bad = [number for number, (is_good, _, _) in enumerate(drawn, 1) if not is_good]
    assert [told["line"] for told in rejects.listed()] == bad
    used = [number for number in range(1, len(lines) + 1) if number not in bad]
    assert [row[0].source for row in read] == [f"mixed:{number}" for number in used]
    (counts,) = rejects.files().values()
    assert counts["read"] == len(lines) == counts["used"] + sum(counts["skipped"].values())
    assert counts["used"] == len(read)


@pytest.mark.parametrize("length", [101, 102, 202, 203, 204, 303, 1000])
@pytest.mark.parametrize("mark", [b"", containers.BOM])
def test_a_line_that_is_too_long_is_one_line_wherever_the_limit_falls(path, monkeypatch, mark, length):
    monkeypatch.setattr(containers, "LINE_LIMIT", 100)
    line = (mark + b'{"text": "').ljust(length - 1, b"a") + b"\n"
    path.write_bytes(line + numbered(2) + line + numbered(4))
    rejects = Rejects(2)
    assert [row[0].source for row in read_rows(path, rejects)] == ["rows.jsonl:2", "rows.jsonl:4"]
    assert [told["line"] for told in rejects.listed()] == [1, 3]
    path.write_bytes(numbered(1) + line.rstrip(b"\n"))
    assert len(read_rows(path, Rejects(1))) == 1


def test_what_is_kept_of_a_row_is_its_beginning_as_text(path):
    long, odd = "é\U0001f600" * TEXT_LIMIT, b'\x1b[31m "\xe9\xff" \0'
    path.write_bytes(GOOD + long.encode() + b"\r\n" + odd + b"\n" + GOOD + b"\n \n" + GOOD)
    rejects = Rejects(9)
    read_rows(path, rejects)
    first, second, *blank = (told["text"] for told in rejects.listed())
    assert first == long[:TEXT_LIMIT]
    assert second == '\x1b[31m "\ufffd\ufffd" \0'
    assert blank == ["", ""]


@pytest.mark.parametrize("name", ["gzip", "UTF-16", "UTF-16 without a mark", "Parquet", "empty", "only blank lines"])
def test_a_file_that_is_not_rows_is_refused_all_the_same(path, name):
    content, line, says = FILES[name]
    path.write_bytes(content)
    rejects = Rejects(100)
    with pytest.raises(DataError) as caught:
        read_rows(path, rejects)
    assert caught.value.line == line and says in str(caught.value)
    assert rejects.listed() == [] and rejects.files() == {}


def test_a_file_without_one_good_row_is_refused_and_its_rows_are_told(path):
    path.write_bytes(b'{"text": ""}\n{}\n')
    rejects = Rejects(2)
    with pytest.raises(DataError, match=r"rows\.jsonl: no usable rows; .*2 rows, all bad, .*:1: text: empty"):
        read_rows(path, rejects)
    assert len(rejects.listed()) == 2
    with pytest.raises(DataError, match="no such file"):
        read_rows(path.with_name("none"), rejects)


def test_one_more_than_the_limit_over_all_files_stops(tmp_path):
    for name, bad in (("a", 2), ("b", 1)):
        (tmp_path / name).write_bytes(GOOD + b'{"text": ""}\n' * bad + GOOD)
    rejects = Rejects(2, tmp_path / "list")
    read_rows(tmp_path / "a", rejects)
    read_rows(tmp_path / "a", rejects)  # again: the same rows are not counted twice
    with pytest.raises(DataError) as caught:
        read_rows(tmp_path / "b", rejects)
    assert (caught.value.path, caught.value.line) == (tmp_path / "b", 2)
    assert "too many unusable rows; expected at most 2 in all files (max_bad); got 3" in str(caught.value)
    assert "the first: a:2: text: empty; expected text; a:3: text: empty" in str(caught.value)
    assert str(caught.value).endswith(f"b:2: text: empty; expected text; see {tmp_path / 'list'}")
    assert [(Path(told["path"]).name, told["line"]) for told in rejects.listed()] == [("a", 2), ("a", 3), ("b", 2)]
    with pytest.raises(DataError, match="at most 0 "):
        read_rows(tmp_path / "b", Rejects(0))


def test_without_a_limit_the_first_bad_row_is_raised_as_what_it_is(path):
    path.write_bytes(GOOD + b'{"text": ""}\n{}\n')
    counting = Rejects()
    with pytest.raises(DataError, match=r"rows\.jsonl:2: text: empty"):
        read_rows(path, counting)
    path.write_bytes(GOOD)
    read_rows(path, counting)
    assert counting.files() == {str(path): {"read": 1, "used": 1, "skipped": {}}} and counting.listed() == []


def test_every_source_of_a_domain_and_of_text_apart_goes_by_the_same_rejects(tmp_path):
    for number, name in enumerate(("train", "more", "validation", "test", "other")):
        row = {"prompt": name, "response": "say"}
        (tmp_path / name).write_text(f"{json.dumps(row)}\n" + "{}\n" * number)
    rejects = Rejects(10)
    data = FileData(train=["train", "more"], validation=["validation"], test=["test"])
    domain = load_domain("math", data, tmp_path.joinpath, rejects)
    assert [row.source for split in (domain.train, domain.validation, domain.test) for row in split] == [
        *(f"{row.prompt}:1" for row in domain.train),
        "validation:1",
        "test:1",
    ]
    assert load_source([Source(path="other")], tmp_path.joinpath, rejects)[0].source == "other:1"
    skipped = {Path(path).name: rows["skipped"] for path, rows in rejects.files().items()}
    assert {name: sum(some.values()) for name, some in skipped.items()} == {
        **{"train": 0, "more": 1, "validation": 2, "test": 3, "other": 4}
    }


def test_where_a_row_was_read_changes_nothing_about_it(path):
    path.write_bytes(numbered(1) + numbered(1))
    one, two = read_examples(path)
    assert (one.source, two.source) == ("rows.jsonl:1", "rows.jsonl:2")
    assert one == two and hash(one) == hash(two)
    other = path.with_name("other")
    other.write_bytes(b"{}\n" + numbered(1))
    data = [FileData(train=[some], validation=[some], test=["test"]) for some in ("rows.jsonl", "other")]
    for name, n in (("test", 2), ("valid", 3)):
        path.with_name(name).write_bytes(numbered(n))
    domains = [
        load_domain("math", d.model_copy(update={"validation": [Source(path="valid")]}), path.parent.joinpath, r)
        for d, r in zip(data, (Rejects(), Rejects(1)), strict=True)
    ]
    assert domains[0].digest == domains[1].digest and domains[0].train == domains[1].train
    assert [domain.train[0].source for domain in domains] == ["rows.jsonl:2", "other:2"]


def test_the_demo_texts_say_where_they_are_from():
    domain = load_domain("math", DemoData(demo="math"), Path)
    for split in ("train", "validation", "test"):
        numbers = [row.source.rpartition(":") for row in getattr(domain, split)]
        assert {place for place, _, _ in numbers} == {f"demo math {split}"}
        assert all(int(number) > 0 for _, _, number in numbers)
