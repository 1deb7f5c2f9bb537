"""What all sections of a recipe share: strictness, the kinds of value (names and ranges of layers too), refusal.

Knows no section by name, and nothing about files or models.
"""

import re
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

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

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
"""A name that can be a folder on every file system, unless its first part is one of DEVICES."""

DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}

RANGE = re.compile(r"(?=\.*\d)(\d{0,6})\.\.(\d{0,6})", re.ASCII)
"""Layers that an adapter touches: "2..", "2..6" (2, 3, 4, 5) or "..4"."""


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


def _distinct(values: list[T]) -> list[T]:
    seen: set[str] = set()  # of their spelling: a list may be long, and a section in it has no hash
    for index, value in enumerate(values):
        if (spelled := repr(value)) in seen:
            raise refusal(RecipeError("given twice", got=spelled), index)
        seen.add(spelled)
    return values


Distinct = AfterValidator(_distinct)


def validate_name(name: str, what: str) -> str:
    """`name` itself, if it can be a folder on every file system; `what` says in the error what it is the name of."""
    if not NAME.fullmatch(name):
        expected = "1 to 96 of the letters A-Z and a-z, digits, '.', '_' and '-', beginning with a letter or a digit"
        raise RecipeError(f"not a name for {what}", expected=expected, got=repr(name))
    if name.endswith("."):
        raise RecipeError(f"not a name for {what}", got=repr(name), hint="a name may not end with a dot")
    if name.split(".")[0].lower() in DEVICES:
        raise RecipeError(f"not a name for {what}", got=repr(name), hint="Windows keeps this name for a device")
    return name


def layer_bounds(text: str | None) -> tuple[int, int | None]:
    """First layer, and the one after the last (None: to the end). No text means all layers."""
    if text is None:
        return 0, None
    match = RANGE.fullmatch(text)
    if match is None:
        raise RecipeError("not a range of layers", expected="'2..', '2..6' or '..4'", got=repr(text))
    start, stop = int(match[1] or 0), int(match[2]) if match[2] else None
    if stop is not None and start >= stop:
        raise RecipeError("an empty range of layers", got=repr(text), hint="the end is not part of the range")
    return start, stop


def layer_range(text: str | None, num_layers: int) -> range:
    """The layers that `text` means in a model of `num_layers`; a range beyond its last layer is refused."""
    start, stop = layer_bounds(text)
    if max(start + 1, stop or 0) > num_layers:
        raise RecipeError("a range of layers beyond the last one", expected=f"at most {num_layers} layers", got=text)
    return range(start, num_layers if stop is None else stop)
