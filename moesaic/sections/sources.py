"""The sections that say where text comes from.

Knows nothing about rows, formats or demo texts: only what the recipe writes.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from moesaic.errors import RecipeError
from moesaic.sections.section import CASE, Count, Distinct, Section, Text, refusal
from moesaic.sections.tasks import Metric, Task, task_of


class Source(Section):
    """A file of rows; a bare path is short for `{path: ...}`."""

    path: Text
    """File of rows, relative to data_root."""
    limit: Count | None = None
    """Rows to read at most."""

    @model_validator(mode="before")
    @classmethod
    def _written_out(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"path": value}
        if not isinstance(value, Mapping | Source):
            raise refusal(RecipeError("wrong value", expected="a path, or a mapping with one", got=repr(value)))
        return value


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


Sources = Annotated[list[Source], BeforeValidator(_listed)]
SomeSources = Annotated[Sources, Field(min_length=1)]


class DemoData(Section):
    """A domain of the built-in demo texts."""

    demo: Text
    """Name of the demo domain."""


def _share_or_sources(value: Any) -> str:
    return CASE + ("share" if isinstance(value, int | float) else "sources")


class FileData(Section):
    """Files of rows, split into what is learned from, chosen by and judged on."""

    train: SomeSources
    """What is learned from."""
    validation: Annotated[
        Annotated[float, Field(gt=0, lt=1), Tag(CASE + "share")] | Annotated[SomeSources, Tag(CASE + "sources")],
        Discriminator(_share_or_sources),
    ] = 0.1
    """What settings are chosen by: files, or the share of train that is put aside for it."""
    test: SomeSources
    """What is judged on, and never learned from."""
    score: Literal["response"] = "response"
    """Which tokens carry loss and are scored: those of the response; a prompt is only read."""


HUB = "hub:"


class LabelledData(Section):
    """Files of rows with a label, split as texts are: JSON Lines, or by their names .tsv and .parquet."""

    task: Text | None = None
    """A task of GLUE, which says the columns, the labels and the metrics."""
    columns: Annotated[list[Text], Distinct, Field(min_length=1, max_length=2)] | None = None
    """The columns of a row's text, or of its two texts."""
    label: Text | None = None
    """The column of a row's label; `label` where none is given."""
    labels: Annotated[list[Text], Distinct, Field(min_length=2)] | None = None
    """Names of the labels, in the order of the integers that stand for them; else those found in train, sorted."""
    metric: Annotated[list[Metric], BeforeValidator(_listed), Distinct, Field(min_length=1)] | None = None
    """What is measured; by the first it is chosen. Accuracy where none is given."""
    train: SomeSources
    """What is learned from; `hub:SPLIT` of a task, or `hub:OWNER/NAME/CONFIG/SPLIT`, is downloaded."""
    validation: Annotated[
        Annotated[float, Field(gt=0, lt=1), Tag(CASE + "share")] | Annotated[SomeSources, Tag(CASE + "sources")],
        Discriminator(_share_or_sources),
    ] = 0.1
    """What settings are chosen by: files, or the share of train that is put aside for it."""
    test: SomeSources
    """What is judged on, and never learned from."""

    @property
    def known(self) -> Task | None:
        """The task of GLUE that this is."""
        return task_of(self.task) if self.task else None

    @property
    def spellings(self) -> tuple[tuple[str, ...], ...]:
        """The columns of the text, in every spelling that is looked for."""
        if self.columns:
            return (tuple(self.columns),)
        return task_of(self.task or "").columns

    @property
    def label_columns(self) -> tuple[str, ...]:
        """The column of the label, in every spelling that is looked for."""
        if self.label:
            return (self.label,)
        return self.known.label if self.known else ("label",)

    @property
    def names(self) -> tuple[str, ...] | None:
        """The labels in their order, where they are known before any row is."""
        if self.labels:
            return tuple(self.labels)
        return self.known.labels if self.known else None

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What is measured; the first is what is chosen by."""
        if self.metric:
            return tuple(self.metric)
        return self.known.metrics if self.known else ("accuracy",)

    @field_validator("task")
    @classmethod
    def _known(cls, task: str | None) -> str | None:
        try:
            return task and task_of(task).name
        except RecipeError as error:
            raise refusal(error) from None

    @model_validator(mode="after")
    def _readable(self) -> "LabelledData":
        if not self.task and not self.columns:
            raise refusal(
                RecipeError("missing", hint="name the column, or the two columns, of a row's text"), "columns"
            )
        for split in ("train", "validation", "test"):
            sources = getattr(self, split)
            for index, source in enumerate(sources if isinstance(sources, list) else []):
                if source.path.startswith(HUB) and source.path.count("/") < 3 - 3 * bool(self.task):
                    error = RecipeError(
                        "no data set of the hub", expected="hub:OWNER/NAME/CONFIG/SPLIT", got=source.path
                    )
                    raise refusal(error, split, index, "path")
        return self


LABELLED = ("task", "columns", "label", "labels", "metric")
"""Keys by one of which data are known to be labelled."""


def case_by_key(key: str, otherwise: str) -> Discriminator:
    """Tells the two shapes of a section apart: by the presence of `key`."""

    def case(value: Any) -> str:
        keys = type(value).model_fields if isinstance(value, BaseModel) else value
        return CASE + (key if isinstance(keys, Mapping) and key in keys else otherwise)

    return Discriminator(case)


def _kind_of_data(value: Any) -> str:
    keys = type(value).model_fields if isinstance(value, BaseModel) else value
    if not isinstance(keys, Mapping):
        return CASE + "train"
    return CASE + ("demo" if "demo" in keys else "labelled" if any(key in keys for key in LABELLED) else "train")


Data = Annotated[
    Annotated[DemoData, Tag(CASE + "demo")]
    | Annotated[LabelledData, Tag(CASE + "labelled")]
    | Annotated[FileData, Tag(CASE + "train")],
    Discriminator(_kind_of_data),
]
