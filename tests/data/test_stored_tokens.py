"""Tokens on disk are those that are encoded in memory."""

import json
from pathlib import Path

import pytest

from moesaic.data.batches import Joined, Schedule, encode_all
from moesaic.data.cuts import cut_of, told, truncated
from moesaic.data.rows import read_rows
from moesaic.data.stored_rows import ROWS, RowFile, StoredRows
from moesaic.data.stored_tokens import StoredTokens, encode_into
from moesaic.tokenizer import Tokenizer


@pytest.fixture
def rows(tmp_path: Path) -> StoredRows:
    def row(n: int) -> dict:
        turns = [
            ("user", f"ask {n}"),
            ("assistant", f"say {n}"),
            ("user", "and?"),
            ("assistant", "more " * (n % 9 + 1)),
        ]
        talk = {"messages": [{"role": role, "content": text} for role, text in turns]}
        return talk if n % 3 else {"text": f"story {n} " * (n % 5 + 1)}

    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row(n)) + "\n" for n in range(40)))
    (folder := tmp_path / "kept").mkdir()
    with RowFile(folder / ROWS) as shelf:
        return shelf.sorted({some[0].group: shelf.add(some) for some in read_rows(tmp_path / "rows.jsonl")})


@pytest.mark.parametrize("length", [12, 1 << 20])
def test_rows_on_disk_are_those_in_memory(
    rows: StoredRows, length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moesaic.data.stored_tokens.TOGETHER", 7)
    monkeypatch.setattr("moesaic.data.stored_tokens.TOKENS_PER_FILE", 100)
    tokenizer = Tokenizer.train(["ask and say more of a story 0123456789"], 280)
    (folder := tmp_path / "tokens").mkdir()
    facts = encode_into(folder, rows, tokenizer, length, 4)
    found, (expected, cut) = StoredTokens(folder, facts, rows), encode_all([*rows], tokenizer, length, 4)
    assert facts["files"] > 3 and len({path.name.split(".")[1] for path in folder.iterdir()}) == 6
    assert [*found] == expected and len(found) == len(expected) and found[2:-1] == expected[2:-1]
    assert [(one.source, one.cut) for one in found] == [(one.source, one.cut) for one in expected]
    assert truncated(found) == cut and bool(cut) == (length == 12)
    assert cut_of(found) == cut_of(expected) and told("training", found, 12) == told("training", expected, 12)
    both = [Joined([some, expected[:5]], evenly=True) for some in (found, expected)]
    schedules = [Schedule(some, 4, seed=3) for some in both]
    assert len(both[0]) == 2 * len(expected) and both[0][len(expected) + 7] == expected[2]
    assert all(schedules[0](step) == schedules[1](step) for step in range(40))
