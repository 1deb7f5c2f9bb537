"""A routing trace on the page of its run."""

import json

import pytest

from moesaic.errors import DataError
from moesaic.report import write_report
from moesaic.report.tracing import MOST, binned, told_of


def row(chosen: str, confidence: float, correction: str | None = None, **other: object) -> str:
    names = ["owl", "wren"]
    shares = {name: confidence if name == chosen else 1 - confidence for name in names}
    weights = {name: float(name == chosen) for name in names}
    own = {"time": "2026-01-31T12:00:00Z", "prompt": "How many?", "tokens": 3, "probabilities": shares}
    own |= {"weights": weights, "chosen": chosen, "forced": False, "mixture": "0" * 12, "correction": correction}
    return json.dumps(own | other) + "\n"


def test_a_trace_is_told_of_in_figures_and_what_was_wrong_in_words(make_run, seen, tmp_path):
    at = tmp_path / "trace.jsonl"
    forced = row("owl", 0.9, forced=True, probabilities=None)
    at.write_text(row("owl", 0.9) + row("wren", 0.75, "owl") + row("owl", 0.6, "owl") + forced)
    page = seen(write_report(make_run(tmp_path / "run"), trace=at).read_text())
    found = {one["data-key"]: float(one["data-value"]) for one, _ in page.figures if one.get("data-of") == "trace"}
    assert found == {
        "rows": 4,
        "forced": 1,
        "abstained": 0,
        "utilisation.owl": pytest.approx(2 / 3),
        "utilisation.wren": pytest.approx(1 / 3),
        "confidence": pytest.approx(0.75),
        "corrected": 2,
        "accuracy": 0.5,
    }
    assert page.text.count("How many?") == 1 and "2026-01-31 12:00" in page.text


@pytest.mark.slow
def test_a_trace_in_which_no_router_was_asked_is_told_of(make_run, seen, tmp_path):
    at = tmp_path / "trace.jsonl"
    at.write_text(row("owl", 0.9, forced=True, probabilities=None))
    text = seen(write_report(make_run(tmp_path / "run"), trace=at).read_text()).text
    assert "There is no confidence to show" in text and "No decision has a correction." in text
    at.write_text("")
    assert "0 decisions." in seen(write_report(tmp_path / "run", trace=at).read_text()).text


def test_only_some_of_many_corrections_are_listed(tmp_path):
    at = tmp_path / "trace.jsonl"
    at.write_text(row("owl", 0.9, "wren") * (MOST + 5))
    told = told_of(at)
    assert len(told.wrong) == MOST and told.more == 5 and told.summary["corrected"] == MOST + 5


def test_confidences_are_counted_in_ten_bins_with_1_in_the_last():
    assert [one["rows"] for one in binned([0.05, 0.1, 0.95, 1.0])] == [1, 1, 0, 0, 0, 0, 0, 0, 0, 2]


def test_a_row_that_is_no_decision_is_named_and_no_page_is_written(make_run, tmp_path):
    at, run = tmp_path / "trace.jsonl", make_run(tmp_path / "run")
    at.write_text(row("owl", 0.9) + '{"time": 3}\n')
    with pytest.raises(DataError, match=f"{at}:2: "):
        write_report(run, trace=at)
    assert not (run / "report").exists()
