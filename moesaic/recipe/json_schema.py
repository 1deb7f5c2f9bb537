"""The JSON schema of a recipe, for editors: every key with its description, type and default.

Knows nothing about checks of values beside each other: keys without effect beside others are allowed here.
"""

from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core.core_schema import TaggedUnionSchema

from moesaic.recipe.schema import Recipe

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """The JSON schema of a recipe as plain data."""
    return {"$schema": DIALECT, **Recipe.model_json_schema(schema_generator=_Shapes)}


class _Shapes(GenerateJsonSchema):
    def tagged_union_schema(self, schema: TaggedUnionSchema) -> JsonSchemaValue:
        """Allows a value of two shapes, such as files of rows with or without labels."""
        return {"anyOf": super().tagged_union_schema(schema)["oneOf"]}
