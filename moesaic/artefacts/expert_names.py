"""Names of experts in a manifest, checked by the rules of recipes, as they become folders and rows of tables.

Knows nothing about the rest of a manifest.
"""

from pathlib import Path
from typing import Any

from moesaic.errors import RecipeError, WeightsError
from moesaic.files import MANIFEST
from moesaic.sections.names import validate_expert


def expert_names(folder: Path, manifest: dict[str, Any]) -> tuple[str, ...]:
    """Check the `experts` of a folder's manifest and return them in their order; call it before building any path."""
    path, names = folder / MANIFEST, manifest.get("experts")
    if not isinstance(names, list) or not names:
        raise WeightsError("no list of names", path=path, field="experts", expected="one name or more", got=repr(names))
    seen: dict[str, str] = {}
    for index, name in enumerate(names):
        field = f"experts[{index}]"
        if not isinstance(name, str):
            raise WeightsError("not a name for an expert", path=path, field=field, expected="text", got=repr(name))
        try:
            validate_expert(name, seen)
        except RecipeError as error:
            facts = {"expected": error.expected, "got": error.got or repr(name), "hint": error.hint}
            raise WeightsError(error.what, path=path, field=field, **facts) from None
    return tuple(names)
