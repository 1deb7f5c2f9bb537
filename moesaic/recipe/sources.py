"""The sections that say where text comes from.

Knows nothing about rows, formats or demo texts: only what the recipe writes.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Discriminator, Field, Tag, model_validator

from moesaic.errors import RecipeError
from moesaic.recipe.section import CASE, Count, Section, Text, refusal


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


def case_by_key(key: str, otherwise: str) -> Discriminator:
    """Tells the two shapes of a section apart: by the presence of `key`."""

    def case(value: Any) -> str:
        keys = type(value).model_fields if isinstance(value, BaseModel) else value
        return CASE + (key if isinstance(keys, Mapping) and key in keys else otherwise)

    return Discriminator(case)


Data = Annotated[
    Annotated[DemoData, Tag(CASE + "demo")] | Annotated[FileData, Tag(CASE + "train")], case_by_key("demo", "train")
]
