"""What all sections of a recipe share: strictness, the kinds of value, how a check refuses one.

Knows no section by name, and nothing about files.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    model_serializer,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from moesaic.errors import RecipeError

T = TypeVar("T")

LARGEST = 2**63 - 1
Whole = Annotated[int, Field(ge=0, le=LARGEST)]
Count = Annotated[int, Field(ge=1, le=LARGEST)]
Positive = Annotated[float, Field(gt=0)]
Amount = Annotated[float, Field(ge=0)]
Text = Annotated[str, Field(pattern=r"^[^\x00]+$")]

CASE = "\0"
"""Begins the tags of unions, which pydantic puts into an error's place; no key of a recipe can begin so."""


def either(words: Iterable[str]) -> str:
    """The words as an error lists them: a, b or c."""
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def refusal(error: RecipeError, *at: str | int) -> PydanticCustomError:
    """`error` as pydantic carries it; `at` leads from the value being checked to the offending one."""
    return PydanticCustomError("recipe", str(error), {"error": error, "at": at})


class Section(BaseModel):
    """A mapping of the recipe: unknown keys, numbers as text, booleans as numbers, NaN and infinity are refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    def idle(self) -> dict[str, str]:
        """Keys that would say nothing beside the others, and why: refused where written, left out of a dump."""
        return {}

    @model_validator(mode="after")
    def _nothing_idle(self) -> "Section":
        for key, why in self.idle().items():
            if key in self.model_fields_set and getattr(self, key) is not None:
                raise refusal(RecipeError("has no effect here", hint=why), key)
        return self

    @model_serializer(mode="wrap")
    def _without_idle(self, write: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        idle = self.idle()
        return {key: value for key, value in write(self).items() if key not in idle and value is not None}


@dataclass(frozen=True)
class OneOrMore:
    """Annotates a list in whose place a recipe may write its only entry."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(_listed, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        several = handler(schema)
        return {"anyOf": [several["items"], several]}


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _distinct(values: list[T]) -> list[T]:
    seen: set[str] = set()  # of their spelling: a list may be long, and a section in it has no hash
    for index, value in enumerate(values):
        if (spelled := repr(value)) in seen:
            raise refusal(RecipeError("given twice", got=spelled), index)
        seen.add(spelled)
    return values


Distinct = AfterValidator(_distinct)
