"""The sections that say where text comes from.

Knows nothing about rows, formats or demo texts: only what the recipe writes.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Discriminator, Field, GetJsonSchemaHandler, Tag, field_validator, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from moesaic.errors import RecipeError
from moesaic.sections.section import CASE, Count, Distinct, OneOrMore, Section, Text, refusal
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

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Adds the bare path."""
        section = handler.resolve_ref_schema(handler(schema))
        return {"anyOf": [section["properties"]["path"], section]}


Sources = Annotated[list[Source], OneOrMore()]
SomeSources = Annotated[Sources, Field(min_length=1)]


class DemoData(Section):
    """A domain of the built-in demo texts."""

    labelled: ClassVar[bool] = False
    """Whether the rows have labels."""
    metrics: ClassVar[tuple[Metric, ...]] = ()
    """Metrics of answers; texts have none."""

    demo: Text
    """Name of the demo domain."""


def _share_or_sources(value: Any) -> str:
    return CASE + ("share" if isinstance(value, int | float) else "sources")


class FileData(Section):
    """Files of rows: to train on, to choose settings by and to judge on."""

    labelled: ClassVar[bool] = False
    """Whether the rows have labels."""
    metrics: ClassVar[tuple[Metric, ...]] = ()
    """Metrics of answers; texts have none."""

    train: SomeSources
    """Files to train on."""
    validation: Annotated[
        Annotated[float, Field(gt=0, lt=1), Tag(CASE + "share")] | Annotated[SomeSources, Tag(CASE + "sources")],
        Discriminator(_share_or_sources),
    ] = 0.1
    """Files to choose settings by, or the share of train to set aside for that."""
    test: SomeSources
    """Files to judge on; nothing is ever trained on them."""
    score: Literal["response"] = "response"
    """Tokens that are trained on and scored: those of the response; a prompt is only read."""


HUB = "hub:"


class LabelledData(Section):
    """Files of rows with a label: JSON Lines, .tsv or .parquet."""

    labelled: ClassVar[bool] = True
    """Whether the rows have labels."""

    task: Text | None = None
    """Task of GLUE, which decides the columns, the labels and the metrics."""
    columns: Annotated[list[Text], Distinct, Field(min_length=1, max_length=2)] | None = None
    """Columns of a row's text, or of its two texts."""
    label: Text | None = None
    """Column of a row's label (default: `label`)."""
    labels: Annotated[list[Text], Distinct, Field(min_length=2)] | None = None
    """Names of the labels, in the order of the integers that stand for them (default: those in train, sorted)."""
    metric: Annotated[list[Metric], OneOrMore(), Distinct, Field(min_length=1)] | None = None
    """Metrics to report; settings are chosen by the first (default: accuracy)."""
    train: SomeSources
    """Files to train on; `hub:SPLIT` of a task and `hub:OWNER/NAME/CONFIG/SPLIT` are downloaded."""
    validation: Annotated[
        Annotated[float, Field(gt=0, lt=1), Tag(CASE + "share")] | Annotated[SomeSources, Tag(CASE + "sources")],
        Discriminator(_share_or_sources),
    ] = 0.1
    """Files to choose settings by, or the share of train to set aside for that."""
    test: SomeSources
    """Files to judge on; nothing is ever trained on them."""

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
