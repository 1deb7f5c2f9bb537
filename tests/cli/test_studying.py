"""`moesaic study` on the command line: a study in small, its verdict and its page, and errors at their places."""

from pathlib import Path
from typing import Any

import pytest

TEXT = """\
name: small
workers: 1
data: texts.jsonl
unseen: 0.4
size: nano
vocab_size: 257
depths: [1]
seeds: 2
arms: {dense: {}, planted: {arm: half_ffn}}
train: {steps: 4, batch: 2, length: 8, decays: [1.0]}
sweep: {most: 3}
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    rows = [f'{{"text": "number {n} of the texts is this one"}}\n' for n in range(30)]
    (tmp_path / "texts.jsonl").write_text("".join(rows))
    (tmp_path / "study.yaml").write_text(TEXT)
    return tmp_path / "study.yaml"


def test_a_study_prints_its_verdict_its_comparisons_and_its_page(moesaic: Any, study: Path) -> None:
    code, out, err = moesaic("study", study, "--out", study.parent, "-q")
    assert code == 0, err
    assert out.startswith("At equal tokens, there is no verdict on planted.")
    assert "planted  active FLOPs" in out and "under-trained" in out
    assert out.rstrip().endswith(f"page: {study.parent / 'small' / 'result' / 'index.html'}")
    assert (study.parent / "small" / "result" / "index.html").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sizes=nano"], "<command line>: sizes: unknown key"),
        (["data=other.jsonl"], "<command line>: data: no such file: other.jsonl"),
        (["--restart", "dense-1"], "--restart: no half-done cell; expected none; got dense-1"),
    ],
)
def test_errors_name_the_key_and_end_with_2_or_3(moesaic: Any, study: Path, words: list[str], message: str) -> None:
    code, _, err = moesaic("study", study, *words, "--out", study.parent, "-q")
    assert code in (2, 3) and err.startswith(f"error: {message}")
