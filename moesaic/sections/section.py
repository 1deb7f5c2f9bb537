"""The base of all sections of a recipe: strictness, types of values, and errors of checks.

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
"""Prefix of the tags of unions, which pydantic adds to an error's location; no key of a recipe has this prefix."""


def either(words: Iterable[str]) -> str:
    """List words for an error: a, b or c."""
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def refusal(error: RecipeError, *at: str | int) -> PydanticCustomError:
    """Wrap `error` for pydantic; `at` leads from the checked value to the wrong one."""
    return PydanticCustomError("recipe", str(error), {"error": error, "at": at})


class Section(BaseModel):
    """A mapping of the recipe; refuses unknown keys, numbers as text, booleans as numbers, NaN and infinity."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    def idle(self) -> dict[str, str]:
        """Keys without effect beside the others -> reason. Such keys are refused in a recipe and left out of a dump."""
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
    """Annotates a list that a recipe may write as its single entry."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(_listed, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        several = handler(schema)
        return {"anyOf": [several["items"], several]}


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _distinct(values: list[T]) -> list[T]:
    seen: set[str] = set()  # spellings, because sections have no hash
    for index, value in enumerate(values):
        if (spelled := repr(value)) in seen:
            raise refusal(RecipeError("given twice", got=spelled), index)
        seen.add(spelled)
    return values


Distinct = AfterValidator(_distinct)
