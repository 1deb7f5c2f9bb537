"""A run as one value: its directory, its texts, its models and its task; and the address by which a process opens it.

Knows nothing about the parts of a run.
"""

from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from moesaic.data.batches import exchange_of
from moesaic.data.rows import Example
from moesaic.hub.locate import Located
from moesaic.recipe import Recipe
from moesaic.runs.directory import RunDir
from moesaic.tasks.labels import LabelTask
from moesaic.tasks.materials import Materials
from moesaic.tasks.models import Models
from moesaic.tasks.task import Task
from moesaic.tasks.texts import TextTask

TASKS: dict[bool, type[Task[Any]]] = {False: TextTask, True: LabelTask}
"""The task of a run, by whether its rows have labels."""


@dataclass(frozen=True)
class Address:
    """Everything that another process needs to open the same run: its directory, and the models located so far.

    `first`: the run knows only so many of its experts, in the order of the recipe, and the rows of all (default: all).
    """

    dir: RunDir
    found: tuple[tuple[str, Located], ...] = ()
    first: int | None = None


@dataclass(frozen=True)
class Run:
    """One run; its values read from disk once, when first asked."""

    dir: RunDir
    materials: Materials
    models: Models
    task: Task[Any]

    @property
    def recipe(self) -> Recipe:
        return self.dir.recipe

    @property
    def address(self) -> Address:
        whole, known = self.materials.recipe, len(self.recipe.experts)
        first = known if known < len(whole.experts) else None
        return Address(replace(self.dir, recipe=whole), tuple(self.models.found.items()), first)


def open_run(address: Address, models: Models | None = None) -> Run:
    """Open the run at an address; nothing is read yet. `models`: those of the same recipe, where they are loaded."""
    models = models or Models(address.dir, address.found)
    recipe = address.dir.recipe
    refuses = bool(recipe.base.place) and not recipe.classifying

    def refuse(row: list[Example]) -> None:
        """Raise DataError for a row that the chat template of an existing base refuses."""
        if refuses:
            models.base.tokenizer.check(exchange_of(one) for one in row if one.prompt)

    def refusing() -> Any:
        return models.base.tokenizer.identity if refuses else None

    materials, dir = Materials(address.dir, refuse, refusing), address.dir
    if address.first is not None:
        known = dict(islice(recipe.experts.items(), address.first))
        dir = replace(dir, recipe=recipe.model_copy(update={"experts": known}))
    return Run(dir, materials, models, TASKS[bool(recipe.classifying)](dir, materials, models))
