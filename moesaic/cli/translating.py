"""`recipe-from`: another system's config as a recipe; `recipe --schema`: the JSON schema of recipes.

Knows nothing about what the keys of any of them mean.
"""

from pathlib import Path

from moesaic.cli.printing import harmless
from moesaic.errors import RecipeError
from moesaic.files import write_json
from moesaic.files.plain import encoded
from moesaic.recipe.gated import translated
from moesaic.recipe.json_schema import json_schema
from moesaic.sections import document


def show_recipe(config: Path, train: list[str], test: list[str], name: str | None) -> None:
    """Print the recipe, with what to know of it as comments on top."""
    found = translated(config, by_name("train", train), by_name("test", test), name)
    for note in found.notes:
        print(harmless(f"# {note}"))
    print(document.dump(found.recipe), end="")


def show_schema(path: Path | None) -> None:
    """Print the JSON schema of recipes, or write it to a file."""
    if path:
        write_json(path, json_schema())
    else:
        print(encoded(json_schema(), indent=2).decode(), end="")


def by_name(option: str, given: list[str]) -> dict[str, list[str]]:
    """NAME=FILE, given any number of times, as the files of each name."""
    files: dict[str, list[str]] = {}
    for text in given:
        name, equals, file = text.partition("=")
        if not (name and equals and file):
            raise RecipeError("not a file for a model", field=option, expected="NAME=FILE", got=repr(text))
        files.setdefault(name, []).append(file)
    return files
