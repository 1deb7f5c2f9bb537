"""Two runs on one page: every figure is that of its run or the difference of both, and recipes differ where they do."""

import json
from pathlib import Path

import pytest

from moesaic.errors import WeightsError
from moesaic.evaluate.wording import spoken
from moesaic.files import read_sealed, write_sealed
from moesaic.report import compare_reports
from moesaic.report.comparison import flattened, judged_alike, recipe_differences, shared_contenders
from moesaic.report.figures import look_up
from moesaic.report.reading import read_run


@pytest.fixture
def runs(make_run, forge, tmp_path) -> tuple[Path, Path]:
    evaluation, data = forge(("owl", "wren"), better=0.1)
    del evaluation["controls"]["average"], evaluation["timing"]["stages"]
    evaluation["controls"]["expert:crow"] = evaluation["controls"]["expert:owl"]
    evaluation["router"]["accuracy"] = 0.5
    return make_run(tmp_path / "a"), make_run(tmp_path / "b", evaluation, data)


def test_every_figure_is_that_of_its_run(runs, seen):
    page = compare_reports(*runs)
    assert page == runs[0] / "report" / "vs-b.html"
    parsed, documents = seen(page.read_text()), [json.loads((run / "evaluation.json").read_text()) for run in runs]
    found = {}
    for attributes, _ in parsed.figures:
        found[attributes["data-of"], attributes["data-key"]] = float(attributes["data-value"])
    for key in ("controls.router.nats.all", "router.accuracy", "router.calibration_error", "parameters.total"):
        a, b = (look_up(document, tuple(key.split("."))) for document in documents)
        assert (found["a", key], found["b", key], found["b-a", key]) == (a, b, b - a)
    assert {("a", "controls.average.nats.all"), ("b", "controls.expert:crow.nats.all")} <= found.keys()
    assert ("b-a", "controls.average.nats.all") not in found
    assert ("a", "timing.stages.base") in found and ("b", "timing.stages.base") not in found
    for document in documents:
        assert spoken(document) in parsed.text


def test_contenders_of_either_run_are_listed_once(runs):
    names = shared_contenders(*map(read_run, runs))
    assert len(names) == len(set(names)) and {"average", "expert:crow"} <= set(names)
    assert names[-1] == "expert:crow"


def test_settings_that_differ_are_listed_with_both_values(runs, seen):
    (runs[1] / "recipe.yaml").write_text("name: other\nseed: 4\ntrain:\n  lr: 0.01\nexperts:\n  owl:\n    rank: 4\n")
    differences = recipe_differences(*map(read_run, runs))
    assert differences == [("seed", "3", "4"), ("train.lr", "[0.01, 0.03]", "0.01"), ("experts.wren.rank", "8", None)]
    text = seen(compare_reports(*runs).read_text()).text
    assert "train.lr" in text and "not set" in text


def test_equal_and_missing_recipes_are_told(runs, seen):
    assert "The recipes have the same settings." in seen(compare_reports(*runs).read_text()).text
    (runs[1] / "recipe.yaml").write_text("a: [")
    assert "A recipe cannot be read: not YAML" in seen(compare_reports(*runs).read_text()).text
    (runs[1] / "recipe.yaml").unlink()
    assert "b: There is no recipe.yaml in this run" in seen(compare_reports(*runs).read_text()).text


def test_runs_judged_on_other_rows_are_told_apart(runs, seen):
    told = "so that a difference says nothing"
    assert told not in seen(compare_reports(*runs).read_text()).text
    at = runs[1] / "evaluation.json"
    found = read_sealed(at)
    found["rows_sha256"]["owl"] = "other"
    write_sealed(at, found)
    page = seen(compare_reports(*runs).read_text())
    assert f"{told}: owl." in page.text
    differences = {one["data-key"] for one, _ in page.figures if one["data-of"] == "b-a"}
    assert "controls.router.nats.wren" in differences and "parameters.total" in differences
    assert not {"controls.router.nats.all", "controls.router.nats.owl", "regret.value", "router.accuracy"} & differences


def test_other_rows_of_unseen_text_leave_the_domains_comparable(runs):
    at = runs[1] / "evaluation.json"
    found = read_sealed(at)
    del found["rows_sha256"]["unseen"]
    write_sealed(at, found)
    alike = judged_alike(*map(read_run, runs))
    assert alike.other == ["unseen"] and alike.all


def test_lists_of_sections_are_flattened_and_plain_lists_are_not():
    value = {"a": {"b": [1, 2], "c": []}, "d": [{"e": "no"}, {"e": None}], "f": {}}
    expected = {"a.b": "[1, 2]", "a.c": "[]", "d[0].e": "'no'", "d[1].e": "null", "f": "{}"}
    assert dict(flattened(value)) == expected


def test_a_comparison_with_what_is_no_run_is_refused(runs, tmp_path):
    with pytest.raises(WeightsError, match="no such run directory"):
        compare_reports(runs[0], tmp_path / "nowhere")
    at = runs[1] / "evaluation.json"
    write_sealed(at, read_sealed(at) | {"verdict": {"use": "base"}})
    with pytest.raises(WeightsError, match=r"b/evaluation.json: not what an evaluation holds"):
        compare_reports(*runs)
