"""The classification tasks of GLUE as data: columns, label names, metrics and their data set on the hub.

Knows nothing about files or rows. GLUE: arXiv 1804.07461, table 1.
"""

from dataclasses import dataclass
from typing import Literal

from moesaic.errors import RecipeError, nearest

Metric = Literal["accuracy", "f1", "matthews"]
HUB = "nyu-mll/glue"


@dataclass(frozen=True)
class GlueTask:
    """A task. `columns` and `label` list the spellings in published copies, the hub's first.

    `labels`: names in the order of their integers. `metrics`: the first one selects models. `headerless`: columns of
    GLUE's own TSV file, if that file has no header.
    """

    name: str
    columns: tuple[tuple[str, ...], ...]
    labels: tuple[str, ...]
    metrics: tuple[Metric, ...] = ("accuracy",)
    label: tuple[str, ...] = ("label",)
    headerless: tuple[str, ...] = ()


_ONE, _TWO = ("sentence",), ("sentence1", "sentence2")
_ENTAILED, _MNLI = ("entailment", "not_entailment"), ("entailment", "neutral", "contradiction")
_SAME = ("not_equivalent", "equivalent")
_COLA = ("source", "label", "author_mark", "sentence")

TASKS: dict[str, GlueTask] = {
    task.name: task
    for task in (
        GlueTask("cola", (_ONE,), ("unacceptable", "acceptable"), ("matthews", "accuracy"), headerless=_COLA),
        GlueTask("sst2", (_ONE,), ("negative", "positive")),
        GlueTask("mrpc", (_TWO, ("#1 String", "#2 String")), _SAME, ("accuracy", "f1"), ("label", "Quality")),
        GlueTask(
            "qqp",
            (("question1", "question2"), _TWO),
            ("not_duplicate", "duplicate"),
            ("accuracy", "f1"),
            ("label", "is_duplicate"),
        ),
        GlueTask("mnli", (("premise", "hypothesis"), _TWO), _MNLI, label=("label", "gold_label")),
        GlueTask("qnli", (("question", "sentence"), _TWO), _ENTAILED),
        GlueTask("rte", (_TWO,), _ENTAILED),
        GlueTask("wnli", (_TWO,), ("not_entailment", "entailment")),
    )
}


def task_of(name: str) -> GlueTask:
    """Return the task `name`; raises RecipeError for an unknown task, and for one without labels."""
    expected = f"one of {', '.join(TASKS)}"
    if name == "stsb":
        hint = "stsb scores the similarity of two sentences with a number, and has no labels"
        raise RecipeError("a regression task", expected=expected, got=name, hint=hint)
    if name not in TASKS:
        hint = nearest(name, [*TASKS]) or "for your own rows, give columns, label and metric instead"
        raise RecipeError("unknown task", expected=expected, got=name, hint=hint)
    return TASKS[name]
