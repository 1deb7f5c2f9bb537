"""What pydantic finds wrong, as the one error that a person reads: where, expected, got, what to do.

Knows nothing about any section by name: what could have been written is read off the models.
"""

import re
from collections.abc import Iterator
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from moesaic.errors import RecipeError, nearest
from moesaic.sections.document import Document, Loc
from moesaic.sections.section import CASE

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
"""Error types of pydantic -> what should have been written, in terms of their context."""


def models_at(annotation: Any, loc: Loc) -> Iterator[type[BaseModel]]:
    """The models that may stand at `loc` in a value of type `annotation`: of a union, all of them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if not loc:
            yield annotation
        elif loc[0] in annotation.model_fields:
            yield from models_at(annotation.model_fields[str(loc[0])].annotation, loc[1:])
        return
    container = get_origin(annotation) in (list, dict)
    if loc or not container:
        for argument in get_args(annotation):
            yield from models_at(argument, loc[1:] if container else loc)


def keys_at(model: type[BaseModel], loc: Loc) -> list[str]:
    """The keys that a section knows; none where there is no section, or one whose keys are free."""
    return list(dict.fromkeys(key for section in models_at(model, loc) for key in section.model_fields))


def as_recipe_error(found: ValidationError, model: type[BaseModel], document: Document) -> RecipeError:
    """The first of all problems in the order of the file, and how many more there are."""
    # A default that depends on a wrong value is no problem of its own.
    causes = [details for details in found.errors() if details["type"] != "default_factory_not_called"]
    problems = [_problem(details, model, document) for details in causes]
    # Where the order is not known, a misspelt key tells more than the missing one it was meant to be.
    order = document.order()
    loc, first = min(problems, key=lambda problem: (order(problem[0]), problem[1].what == "missing"))
    if len(problems) > 1:
        first.hint = f"{first.hint or ''} (and {len(problems) - 1} more)".strip()
    return document.located(first, loc)


def unknown_key(key: str, known: list[str], beside: Any) -> RecipeError:
    """The refusal of a key: misspelt, or one that does not go with those `beside` it."""
    if key in known:
        others = ", ".join(f"'{other}'" for other in beside if other != key)
        return RecipeError(f"does not go with {others}")
    hint = nearest(key, known)
    return RecipeError("unknown key", expected=None if hint else f"one of {', '.join(known)}", hint=hint)


def _problem(details: ErrorDetails, model: type[BaseModel], document: Document) -> tuple[Loc, RecipeError]:
    loc: Loc = tuple(step for step in details["loc"] if not str(step).startswith(CASE))
    kind, got, context = details["type"], details["input"], details.get("ctx", {})
    if kind == "recipe":
        return document.find(loc + context["at"]), context["error"]
    if kind == "extra_forbidden":
        place = document.find(loc)
        return place, unknown_key(str(loc[-1]), keys_at(model, loc[:-1]), document.at(place[:-1]))
    if kind == "missing":
        return document.find(loc), RecipeError("missing")
    expected = EXPECTED[kind].format_map(context) if kind in EXPECTED else details["msg"]
    hint = None
    if kind == "literal_error":
        hint = nearest(str(got), re.findall(r"'([^']*)'", expected))
    if kind == "string_type" and isinstance(got, int | float):
        hint = "put it in quotes"
    return document.find(loc), RecipeError("wrong value", expected=expected, got=repr(got), hint=hint)
