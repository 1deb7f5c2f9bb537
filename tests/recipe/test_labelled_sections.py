"""Property: recipes of experts that classify: what may be written, and what is refused by name."""

import pytest

from moesaic.errors import RecipeError
from moesaic.recipe import dump, parse
from moesaic.sections.glue import TASKS, task_of
from moesaic.sections.sources import LabelledData

FILES = {"train": "a.jsonl", "test": "b.jsonl"}
MRPC = {"task": "mrpc", **FILES}


def recipe(expert=None, **changes):
    experts = {"mrpc": {"kind": "lora", "targets": ["query"], "data": MRPC, **(expert or {})}}
    return parse(
        {"name": "x", "base": {"path": "some/encoder"}, "experts": experts, "router": {"kind": "linear"}, **changes}
    )


def test_a_task_says_columns_labels_and_metrics_and_each_can_be_written_in_its_place():
    data = recipe().experts["mrpc"].data
    assert isinstance(data, LabelledData) and recipe().classifying
    assert data.spellings[0] == ("sentence1", "sentence2") and data.names == ("not_equivalent", "equivalent")
    assert data.metrics == ("accuracy", "f1") and data.label_columns == ("label", "Quality")
    own = {**MRPC, "columns": ["a", "b"], "label": "y", "labels": ["n", "p"], "metric": "matthews"}
    data = recipe({"data": own}).experts["mrpc"].data
    assert (data.spellings, data.label_columns, data.names, data.metrics) == (
        (("a", "b"),),
        ("y",),
        ("n", "p"),
        ("matthews",),
    )


def test_the_resolved_recipe_is_read_back_as_the_same():
    import yaml

    swept = {"kind": "lora", "head": "frozen", "sweep": {"rank": [2], "targets": [["query"], ["query", "value"]]}}
    first = recipe(experts={"mrpc": {**swept, "data": MRPC}})
    assert parse(yaml.safe_load(dump(first))) == first


def test_every_combination_is_tried():
    expert = recipe({"sweep": {"rank": [2, 4], "alpha": [1.0, 3.0, 9.0], "lr": [1e-3]}}).experts["mrpc"]
    assert [(one.rank, one.alpha) for one in expert.trials] == [(r, a) for r in (2, 4) for a in (1.0, 3.0, 9.0)]
    assert recipe().experts["mrpc"].trials == [recipe().experts["mrpc"]]


def test_all_tasks_of_glue_with_labels_are_known_and_the_regression_is_refused_by_name():
    assert set(TASKS) == {"cola", "sst2", "mrpc", "qqp", "mnli", "qnli", "rte", "wnli"}
    assert all(task_of(name).name == name and len(task_of(name).labels) in (2, 3) for name in TASKS)


TEXT = {"kind": "lora", "data": FILES}
BAD = {
    "a regression": ({"data": {**MRPC, "task": "stsb"}}, {}, "experts.mrpc.data.task: a regression task"),
    "a misspelt task": ({"data": {**MRPC, "task": "mprc"}}, {}, "data.task: unknown task.*did you mean 'mrpc'"),
    "no columns": ({"data": {"label": "y", **FILES}}, {}, "data.columns: missing"),
    "three columns": ({"data": {"columns": ["a", "b", "c"], **FILES}}, {}, "data.columns"),
    "an unknown metric": (
        {"data": {**MRPC, "metric": "f2"}},
        {},
        "data.metric.*expected 'accuracy', 'f1' or 'matthews'",
    ),
    "a positive label of no f1": (
        {"data": {**MRPC, "metric": "accuracy", "positive": "equivalent"}},
        {},
        "data.positive: has no effect without the metric f1: equivalent; add f1 to metric, or remove positive",
    ),
    "a positive label that is none": (
        {"data": {**MRPC, "positive": "equivalnt"}},
        {},
        "data.positive: unknown label; expected one of not_equivalent, equivalent; .*did you mean 'equivalent'",
    ),
    "one label": ({"data": {**MRPC, "labels": ["a"]}}, {}, "data.labels: wrong value; expected 2 or more"),
    "a label twice": ({"data": {**MRPC, "labels": ["a", "a"]}}, {}, r"data.labels\[1\]: given twice"),
    "half a place of the hub": (
        {"data": {"columns": ["a"], **FILES, "train": "hub:train"}},
        {},
        "not a data set of the hub",
    ),
    "an expert that writes beside it": ({}, {"other": TEXT}, "experts.other.data: 'mrpc' classifies.*'other' has none"),
    "an empty sweep": ({"sweep": {}}, {}, "sweep: nothing to try"),
    "a value that is tried, too": (
        {"rank": 4, "sweep": {"rank": [2]}},
        {},
        "rank: has no effect here; sweep.rank replaces it",
    ),
    "a misspelt key": ({"data": {**MRPC, "lables": ["a", "b"]}}, {}, "lables: unknown key; did you mean 'labels'"),
}


@pytest.mark.parametrize(("expert", "others", "says"), BAD.values(), ids=BAD.keys())
def test_what_cannot_be_is_refused_with_its_place(expert, others, says):
    experts = {"mrpc": {"kind": "lora", "targets": ["query"], "data": MRPC, **expert}, **others}
    with pytest.raises(RecipeError, match=says):
        recipe(experts=experts)


def test_what_goes_with_labels_only_is_refused_beside_texts_and_the_other_way_round():
    with pytest.raises(RecipeError, match="experts.mrpc.head: has no effect here; only experts that classify"):
        recipe({"data": FILES, "head": "frozen"})
    with pytest.raises(RecipeError, match="base.pool: has no effect here; pool applies only to rows with labels"):
        recipe({"data": FILES}, base={"path": "x", "pool": "mean"})
    with pytest.raises(RecipeError, match="base.size: a new base cannot classify"):
        recipe(base={"size": "nano", "pretrain": {}})
    with pytest.raises(
        RecipeError, match="train.tether: has no effect here; a tether applies only to rows without labels"
    ):
        recipe(train={"tether": 0.1})
    with pytest.raises(RecipeError, match="experts.mrpc.train.tether: has no effect here"):
        recipe({"train": {"tether": 0.1}})
    with pytest.raises(RecipeError, match="evaluate.unseen: text without labels cannot be evaluated"):
        recipe(evaluate={"unseen": "c.jsonl"})
