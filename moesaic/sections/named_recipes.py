"""Recipes by name: those that the package carries, beside the files of a user.

Knows nothing about the content of recipes.
"""

import os
from pathlib import Path

from moesaic.errors import RecipeError, nearest

PACKAGE = Path(__file__).parents[1]
FOLDERS = (PACKAGE / "recipes", PACKAGE.parent / "recipes")
"""The recipes in an installed package; in a checkout they stand beside it."""


def known_recipes() -> dict[str, Path]:
    """The recipes of the package by name."""
    folder = next((one for one in FOLDERS if one.is_dir()), None)
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))} if folder else {}


def recipe_at(place: str | os.PathLike[str]) -> Path:
    """The file of a recipe: a path, or the name of a recipe in the package; a file that exists takes precedence."""
    path, known = Path(place), known_recipes()
    if os.path.lexists(path):
        return path
    if os.fspath(place) in known:
        return known[os.fspath(place)]
    if path.stem in known:
        hint = f"the package has a recipe of this name: {path.stem}"
    else:
        hint = nearest(os.fspath(place), [*known]) or "`moesaic init` writes a recipe to start from"
    raise RecipeError("no such file", path=place, expected=f"a file, or {' or '.join(known)}", hint=hint)
