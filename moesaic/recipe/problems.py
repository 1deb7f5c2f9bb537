"""Turns the errors of pydantic into one error for a person: place, expected, got and remedy.

Knows no section by name: the known keys are read from the models.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from moesaic.errors import RecipeError, nearest
from moesaic.recipe.by_kind import ByKind, kind_sections
from moesaic.sections.document import Document, Loc
from moesaic.sections.section import CASE, either

EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "string_unicode": "text",
    "string_pattern_mismatch": "text, not empty and without NUL",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "literal_error": "{expected}",
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "less than {lt}",
    "less_than_equal": "{le} or less",
    "too_short": "{min_length} or more",
}
"""Error types of pydantic -> expected value, a template for their context."""

MISSING = {
    "base": "for example base: {path: shipped:tiny}",
    "experts": "for example experts: {math: {kind: lora, data: {train: math.jsonl, test: math-test.jsonl}}}",
    "router": "for example router: {kind: mlp, feature: hidden_mean}",
    "train": "name a file of rows to learn from",
    "test": "name a file of rows that nothing learns from",
}
"""Key -> hint where it is missing."""


WORDS = {"checkpoint": "recompute", "gradient_checkpointing": "recompute"}
"""Keys of other programs -> ours."""


@dataclass(frozen=True)
class Shape:
    """A section that is possible at a place. `kinds`: the kinds it requires, if the recipe writes another kind."""

    section: type[BaseModel]
    kinds: tuple[str, ...] = ()

    @property
    def keys(self) -> Iterable[str]:
        return self.section.model_fields


def shapes_at(annotation: Any, loc: Loc, value: Any, kinds: tuple[str, ...] = ()) -> Iterator[Shape]:
    """The sections that are possible at `loc` in `value` of type `annotation`: all members of a union."""
    if isinstance(annotation, ByKind):
        for section in kind_sections():
            yield from shapes_at(section, loc, value, kinds)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        kinds = kinds or other_kinds(annotation, value)
        if not loc:
            yield Shape(annotation, kinds)
        elif loc[0] in annotation.model_fields:
            field = annotation.model_fields[str(loc[0])]
            for part in (field.annotation, *field.metadata):
                yield from shapes_at(part, loc[1:], inside(value, loc[0]), kinds)
    elif get_origin(annotation) in (list, dict):
        if loc:
            for argument in get_args(annotation):
                yield from shapes_at(argument, loc[1:], inside(value, loc[0]), kinds)
    else:
        for argument in get_args(annotation):
            yield from shapes_at(argument, loc, value, kinds)


def other_kinds(section: type[BaseModel], value: Any) -> tuple[str, ...]:
    """The kinds of a section, if `value` writes another kind."""
    if "kind" not in section.model_fields or not isinstance(value, dict) or "kind" not in value:
        return ()
    kinds = get_args(section.model_fields["kind"].annotation)
    return () if value["kind"] in kinds else kinds


def inside(value: Any, step: str | int) -> Any:
    written = isinstance(value, dict) or (isinstance(value, list) and isinstance(step, int) and step < len(value))
    return value.get(step) if isinstance(value, dict) else value[step] if written else None


def keys_of(shapes: Iterable[Shape]) -> list[str]:
    return list(dict.fromkeys(key for shape in shapes for key in shape.keys))


def as_recipe_error(found: ValidationError, model: type[BaseModel], document: Document) -> RecipeError:
    """The first problem in the order of the file, with the number of further problems."""
    # An error about a default that depends on another wrong value repeats that error.
    causes = [details for details in found.errors() if details["type"] != "default_factory_not_called"]
    problems = [_problem(details, model, document) for details in causes]
    # In an unknown order, a misspelt key says more than the missing key it was meant to be.
    order = document.order()
    loc, first = min(problems, key=lambda problem: (order(problem[0]), problem[1].what == "missing"))
    if len(problems) > 1:
        first.hint = f"{first.hint or ''} (and {len(problems) - 1} more)".strip()
    return document.located(first, loc)


def unknown_key(key: str, shapes: Sequence[Shape], beside: Any) -> RecipeError:
    """The error about a key: misspelt, of another kind, or in conflict with the keys `beside` it."""
    known = keys_of(shape for shape in shapes if not shape.kinds)
    if key in known:
        others = ", ".join(f"'{other}'" for other in beside if other != key)
        return RecipeError(f"does not go with {others}")
    kinds = dict.fromkeys(kind for shape in shapes if key in shape.keys for kind in shape.kinds)
    ours = WORDS.get(key)
    own = f"the key is '{ours}'" if ours in known else nearest(key, known)
    hint = f"it goes with kind: {either(kinds)}" if kinds else own
    return RecipeError("unknown key", expected=None if hint else f"one of {', '.join(known)}", hint=hint)


def _problem(details: ErrorDetails, model: type[BaseModel], document: Document) -> tuple[Loc, RecipeError]:
    loc: Loc = tuple(step for step in details["loc"] if not str(step).startswith(CASE))
    kind, got, context = details["type"], details["input"], details.get("ctx", {})
    if kind == "recipe":
        return document.find(loc + context["at"]), context["error"]
    if kind == "extra_forbidden":
        place = document.find(loc)
        shapes = [*shapes_at(model, loc[:-1], document.value)]
        return place, unknown_key(str(loc[-1]), shapes, document.at(place[:-1]))
    if kind == "missing":
        return document.find(loc), RecipeError("missing", hint=MISSING.get(str(loc[-1])))
    expected = EXPECTED[kind].format_map(context) if kind in EXPECTED else details["msg"]
    hint = None
    if kind == "literal_error":
        hint = nearest(str(got), re.findall(r"'([^']*)'", expected))
    if kind == "string_type" and isinstance(got, int | float):
        hint = "put it in quotes"
    return document.find(loc), RecipeError("wrong value", expected=expected, got=repr(got), hint=hint)
