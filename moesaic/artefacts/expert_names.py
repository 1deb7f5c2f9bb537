"""The experts that a manifest names, held to what a recipe may call them: they become folders and rows of tables.

Knows nothing about what else stands in a manifest.
"""

from pathlib import Path
from typing import Any

from moesaic.errors import RecipeError, WeightsError
from moesaic.files import MANIFEST
from moesaic.sections.names import validate_expert


def expert_names(folder: Path, manifest: dict[str, Any]) -> tuple[str, ...]:
    """The `experts` of a folder's manifest, in its order; no path is built from one before this has passed it."""
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
            got, hint = error.got or repr(name), error.hint
            raise WeightsError(
                error.what, path=path, field=field, expected=error.expected, got=got, hint=hint
            ) from None
    return tuple(names)
