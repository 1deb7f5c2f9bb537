"""The classification tasks of GLUE as data: columns, names of the labels, metrics, and where the hub has them.

Knows nothing about files or rows. GLUE: arXiv 1804.07461, table 1.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from moesaic.errors import RecipeError, nearest

Metric = Literal["accuracy", "f1", "matthews"]
METRICS: tuple[Metric, ...] = get_args(Metric)
HUB = "nyu-mll/glue"


@dataclass(frozen=True)
class Task:
    """`columns` and `label`: as copies of the data spell them, the hub's first; a row is read by what it has.

    `labels`: names in the order of the integers that stand for them. `metrics`: the first is what a model is chosen
    by. `headerless`: the columns of GLUE's own TSV where that has no line that names them.
    """

    name: str
    columns: tuple[tuple[str, ...], ...]
    labels: tuple[str, ...]
    metrics: tuple[Metric, ...] = ("accuracy",)
    label: tuple[str, ...] = ("label",)
    headerless: tuple[str, ...] = ()


_SENTENCE, _SENTENCES = ("sentence",), ("sentence1", "sentence2")
_ENTAILED = ("entailment", "not_entailment")

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "cola",
            (_SENTENCE,),
            ("unacceptable", "acceptable"),
            ("matthews", "accuracy"),
            headerless=("source", "label", "author_mark", "sentence"),
        ),
        Task("sst2", (_SENTENCE,), ("negative", "positive")),
        Task(
            "mrpc",
            (_SENTENCES, ("#1 String", "#2 String")),
            ("not_equivalent", "equivalent"),
            ("accuracy", "f1"),
            ("label", "Quality"),
        ),
        Task(
            "qqp",
            (("question1", "question2"), _SENTENCES),
            ("not_duplicate", "duplicate"),
            ("accuracy", "f1"),
            ("label", "is_duplicate"),
        ),
        Task(
            "mnli",
            (("premise", "hypothesis"), _SENTENCES),
            ("entailment", "neutral", "contradiction"),
            label=("label", "gold_label"),
        ),
        Task("qnli", (("question", "sentence"), _SENTENCES), _ENTAILED),
        Task("rte", (_SENTENCES,), _ENTAILED),
        Task("wnli", (_SENTENCES,), ("not_entailment", "entailment")),
    )
}


def task_of(name: str) -> Task:
    """The task of that name; RecipeError for one that is unknown, or that has no labels."""
    if name == "stsb":
        hint = "stsb asks how similar two sentences are, as a number: it has no labels"
        raise RecipeError("a regression task", expected=f"one of {', '.join(TASKS)}", got=name, hint=hint)
    if name not in TASKS:
        hint = nearest(name, [*TASKS]) or "for rows of your own give columns, label and metric in its place"
        raise RecipeError("unknown task", expected=f"one of {', '.join(TASKS)}", got=name, hint=hint)
    return TASKS[name]
