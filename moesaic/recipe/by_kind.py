"""The section of an expert, chosen by its kind from the table of kinds.

Knows no kind by name: pydantic reads the table when it builds the schema of a recipe.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Union

from pydantic import BeforeValidator, Discriminator, GetCoreSchemaHandler, GetJsonSchemaHandler, Tag
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from moesaic.errors import RecipeError, nearest
from moesaic.kinds import KINDS
from moesaic.sections.expert import Expert
from moesaic.sections.section import CASE, either, refusal


def kind_sections() -> tuple[type[Expert], ...]:
    return tuple(kind.section for kind in KINDS.values())


@dataclass(frozen=True)
class ByKind:
    """Annotates `Expert`: a union of the sections of all kinds, chosen by the key `kind`."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        tagged: Any = tuple(Annotated[kind.section, Tag(CASE + word)] for word, kind in KINDS.items())
        union: Any = Union[tagged]  # noqa: UP007  (its members are known only now)
        return handler.generate_schema(Annotated[union, Discriminator(_case), BeforeValidator(_of_known_kind)])

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Maps each kind to its section, so that an editor offers the keys of the kind."""
        (sections,) = handler(schema).values()
        mapping = {word: section["$ref"] for word, section in zip(KINDS, sections, strict=True)}
        return {"oneOf": sections, "discriminator": {"propertyName": "kind", "mapping": mapping}}


def _case(value: Any) -> str:
    return CASE + dict(value)["kind"]


def _of_known_kind(value: Any) -> Any:
    """Refuse an expert without a kind, or of an unknown kind, before its other keys are checked."""
    if isinstance(value, Expert):
        return value
    if not isinstance(value, Mapping):
        raise refusal(RecipeError("wrong value", expected="a mapping", got=repr(value)))
    expected, kind = either(map(repr, KINDS)), value.get("kind")
    if "kind" in value and kind not in list(KINDS):
        hint = nearest(str(kind), list(KINDS))
        raise refusal(RecipeError("wrong value", expected=expected, got=repr(kind), hint=hint), "kind")
    if "kind" not in value:
        known = {key for section in kind_sections() for key in section.model_fields}
        for key in value:
            if key not in known and (hint := nearest(str(key), ["kind"])):
                raise refusal(RecipeError("unknown key", hint=hint), key)
        raise refusal(RecipeError("missing", expected=expected), "kind")
    return value
