"""Tasks of lm-evaluation-harness on a model: its base, each of its experts, and the mixture, as one table.

Knows nothing about how a model answers the harness: see `evaluate.harness_model`.
"""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesaic.errors import DataError, RecipeError, nearest
from moesaic.files import write_bytes
from moesaic.generate.loaded import WritingModel, load
from moesaic.generate.request import BASE
from moesaic.hardware import AUTO

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

EXTRA = "pip install 'moesaic[lm-eval]'"
MIXTURE = "mixture"
RESAMPLES = 1000
"""Resamples for the standard errors that the harness has no formula for."""


def judge_tasks(
    place: str | os.PathLike[str],
    tasks: Sequence[str],
    *,
    include: str | os.PathLike[str] | None = None,
    base: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    samples: str | os.PathLike[str] | None = None,
    device: str = AUTO,
    dtype: str = "float32",
) -> dict[str, Any]:
    """Evaluate a model by tasks of lm-evaluation-harness, ready for JSON.

    `include`: a folder with YAML files of more tasks. `limit`: the first rows of each task. `samples`: a file for every
    row of every contender, with the expert that answered it, as JSON Lines. `device`, `dtype`: see `moesaic.load`.

    {model, contenders: {contender: {task: {metric: value}}}}; the metrics have the harness's own names, such as
    `acc,none` and `acc_stderr,none`.
    """
    if find_spec("lm_eval") is None:
        raise DataError("lm_eval is not installed, which evaluates tasks", field="lm_eval", hint=EXTRA)
    from lm_eval import simple_evaluate

    from moesaic.evaluate.harness_model import HarnessModel

    manager = task_manager(tasks, include)
    model = load(place, base=base, device=device, dtype=dtype).writer
    found, rows = dict[str, Any](), list[dict[str, Any]]()
    for contender, expert in contenders(model).items():
        lm = HarnessModel(model, expert)
        with redirect_stdout(sys.stderr):  # the harness prints what it is doing
            made = simple_evaluate(
                model=lm, tasks=[*tasks], task_manager=manager, limit=limit, bootstrap_iters=RESAMPLES
            )
        found[contender] = {task: figures(some) for task, some in made["results"].items()}
        rows += sampled(contender, made["samples"], lm.answered)
    if samples is not None:
        lines = (json.dumps(row, ensure_ascii=False, default=str) for row in rows)
        write_bytes(Path(samples), "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace"))
    return {"model": repr(model), "contenders": found}


def contenders(model: WritingModel) -> dict[str, str | None]:
    """The contenders of a model, each with the expert that answers in it; None: the router's choice."""
    found: dict[str, str | None] = {"base": BASE, **{f"expert:{name}": name for name in model.names}}
    return found | ({MIXTURE: None} if model.routes else {})


def task_manager(tasks: Sequence[str], include: str | os.PathLike[str] | None) -> "TaskManager":
    """The tasks that the harness knows: those of a folder alone, where it has all that are wanted, else all tasks."""
    from lm_eval.tasks import TaskManager

    if include is not None:
        if not Path(include).is_dir():
            raise DataError("no folder of tasks", path=include, field="include")
        manager = TaskManager(include_path=os.fspath(include), include_defaults=False)
        if {*tasks} <= {*manager.all_tasks}:
            return manager
    manager = TaskManager(include_path=None if include is None else os.fspath(include))
    for name in tasks:
        if name not in manager.all_tasks:
            hint = nearest(name, [*manager.all_tasks]) or "name its folder, too, where the task is your own"
            raise RecipeError("no such task of lm-evaluation-harness", field="tasks", got=name, hint=hint)
    return manager


def figures(some: Mapping[str, Any]) -> dict[str, float]:
    """The metrics among the harness's results of a task; an error that it did not compute is left out."""
    return {key: value for key, value in some.items() if "," in key and isinstance(value, int | float)}


def sampled(
    contender: str, samples: Mapping[str, Sequence[Mapping[str, Any]]], answered: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    """Every row of every task, with the names of those that answered its requests."""
    for task, some in samples.items():
        for one in some:
            names = dict.fromkeys(answered[arguments[0]] for arguments in one["arguments"])
            yield {"contender": contender, "task": task, "experts": [*names], **one}
