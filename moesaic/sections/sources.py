"""The sections about sources of text.

Knows nothing about rows, formats or demo texts.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Discriminator, Field, GetJsonSchemaHandler, Tag, field_validator, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from moesaic.errors import RecipeError, nearest
from moesaic.sections.glue import GlueTask, Metric, task_of
from moesaic.sections.section import CASE, Count, Distinct, OneOrMore, Section, Text, refusal


class Source(Section):
    """A file of rows. A bare path is short for `{path: ...}`."""

    path: Text
    """File of rows, relative to `data_root`."""
    limit: Count | None = None
    """Number of usable rows to read, from the beginning of the file; no row behind them is read (default: all)."""
    every: Count = Field(1, exclude_if=lambda every: every == 1)  # runs without it keep their keys
    """Read one row in so many, from the first one on: some of each part of a sorted file (default: every row)."""

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
        section = handler.resolve_ref_schema(handler(schema))
        return {"anyOf": [section["properties"]["path"], section]}


Sources = Annotated[list[Source], OneOrMore()]
SomeSources = Annotated[Sources, Field(min_length=1)]


class Unlabelled(Section):
    """Rows without labels."""

    labelled: ClassVar[bool] = False
    """Whether the rows have labels."""
    metrics: ClassVar[tuple[Metric, ...]] = ()
    """Metrics of labels."""
    positive: ClassVar[str | None] = None
    """Label of the metric f1."""


DemoDomain = Literal["code", "prose", "math", "dialogue", "cooking"]


class DemoData(Unlabelled):
    """A domain of the built-in demo texts."""

    demo: DemoDomain
    """Name of the demo domain."""


def _share_or_sources(value: Any) -> str:
    return CASE + ("share" if isinstance(value, int | float) else "sources")


Validation = Annotated[
    Annotated[float, Field(gt=0, lt=1), Tag(CASE + "share")] | Annotated[SomeSources, Tag(CASE + "sources")],
    Discriminator(_share_or_sources),
]


class FileData(Unlabelled):
    """Files of rows for training, validation and test."""

    train: SomeSources
    """Files for training."""
    validation: Validation = 0.1
    """Files for the choice of settings, or the share of train to set aside for validation."""
    test: SomeSources
    """Files for evaluation only."""
    score: Literal["response"] = "response"
    """Tokens to train on and to score: those of the response; prompts are only read."""


HUB = "hub:"


class LabelledData(Section):
    """Files of rows with labels: JSON Lines, .tsv or .parquet."""

    labelled: ClassVar[bool] = True
    """Whether the rows have labels."""

    task: Text | None = None
    """Task of GLUE; decides the columns, the labels and the metrics."""
    columns: Annotated[list[Text], Distinct, Field(min_length=1, max_length=2)] | None = None
    """Column of a row's text, or columns of its two texts."""
    label: Text | None = None
    """Column of a row's label (default: `label`)."""
    labels: Annotated[list[Text], Distinct, Field(min_length=2)] | None = None
    """Names of the labels in the order of their integers (default: the labels in train, sorted)."""
    metric: Annotated[list[Metric], OneOrMore(), Distinct, Field(min_length=1)] | None = None
    """Metrics to report; the first one decides between settings (default: accuracy)."""
    positive: Text | None = None
    """Label whose F1 the metric f1 is (default: of two labels the second in `labels`; of more the mean over labels)."""
    train: SomeSources
    """Files for training; `hub:SPLIT` of a task and `hub:OWNER/NAME/CONFIG/SPLIT` are downloaded."""
    validation: Validation = 0.1
    """Files for the choice of settings, or the share of train to set aside for validation."""
    test: SomeSources
    """Files for evaluation only."""

    @property
    def known(self) -> GlueTask | None:
        return task_of(self.task) if self.task else None

    @property
    def spellings(self) -> tuple[tuple[str, ...], ...]:
        """Columns of the text in every known spelling."""
        if self.columns:
            return (tuple(self.columns),)
        return task_of(self.task or "").columns

    @property
    def label_columns(self) -> tuple[str, ...]:
        """Column of the label in every known spelling."""
        if self.label:
            return (self.label,)
        return self.known.label if self.known else ("label",)

    @property
    def names(self) -> tuple[str, ...] | None:
        """Labels in their order; None if only the rows name them."""
        if self.labels:
            return tuple(self.labels)
        return self.known.labels if self.known else None

    @property
    def metrics(self) -> tuple[Metric, ...]:
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
            hint = "name the column of a row's text, or the columns of its two texts"
            raise refusal(RecipeError("missing", hint=hint), "columns")
        if self.positive and "f1" not in self.metrics:
            hint = "add f1 to metric, or remove positive"
            raise refusal(RecipeError("has no effect without the metric f1", got=self.positive, hint=hint), "positive")
        if self.positive and self.names and self.positive not in self.names:
            near = nearest(self.positive, [*self.names])
            what, expected = "unknown label", f"one of {', '.join(self.names)}"
            raise refusal(RecipeError(what, expected=expected, got=self.positive, hint=near), "positive")
        for split in ("train", "validation", "test"):
            sources = getattr(self, split)
            for index, source in enumerate(sources if isinstance(sources, list) else []):
                if source.path.startswith(HUB) and source.path.count("/") < 3 - 3 * bool(self.task):
                    what, expected = "not a data set of the hub", "hub:OWNER/NAME/CONFIG/SPLIT"
                    raise refusal(RecipeError(what, expected=expected, got=source.path), split, index, "path")
        return self


LABELLED = ("task", "columns", "label", "labels", "metric", "positive")
"""Keys that only labelled data have."""


def case_by_key(key: str, otherwise: str) -> Discriminator:
    """Choose between two shapes of a section by the presence of `key`."""

    def case(value: Any) -> str:
        keys = type(value).model_fields if isinstance(value, BaseModel) else value
        return CASE + (key if isinstance(keys, Mapping) and key in keys else otherwise)

    return Discriminator(case)


Unseen = Annotated[
    Annotated[DemoData, Tag(CASE + "demo")] | Annotated[Sources, Tag(CASE + "sources")],
    case_by_key("demo", "sources"),
]
"""Text from domains without an expert: the test rows of a built-in domain, or files."""


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
