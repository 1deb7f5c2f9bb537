"""A recipe from a file or a mapping, with what the command line puts in its place; and back to text.

Knows nothing about what a recipe's keys mean, but for the folders that its paths are relative to.
"""

import copy
import os
import re
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from moesaic.errors import RecipeError, nearest
from moesaic.recipe.problems import as_recipe_error, keys_of, shapes_at, unknown_key
from moesaic.recipe.schema import Recipe
from moesaic.sections.document import BEHIND_ALL, COMMAND_LINE, Document, Loc, field_name
from moesaic.sections.document import dump as dump_yaml
from moesaic.sections.document import load as load_yaml
from moesaic.sections.places import is_folder, settled
from moesaic.sections.routers import RouterSpec

Spec = TypeVar("Spec", bound=RouterSpec)

MOST_BYTES = 2**20
# Keys whose values are folders, if they exist.
FOLDER = re.compile(r"data_root|base\.path|experts\..+\.path|router\..*feature\.model")
STEP = re.compile(r"([^.\[\]]+)\.?|\[(\d{1,6})\]\.?")


def read(path: str | PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file; each override is a `key=value`, with the names of the file and a value in YAML."""
    return _checked(load_yaml(_text(path), os.fspath(path)), overrides, Path(path).parent)


def parse(
    mapping: Mapping[str, Any], overrides: Sequence[str] = (), source: str | PathLike[str] | None = None
) -> Recipe:
    """`read` for a recipe that is a mapping already; paths are relative to the folder of `source`, or to this one."""
    document = Document(copy.deepcopy(dict(mapping)), None if source is None else os.fspath(source))
    return _checked(document, overrides, Path(source or ".").parent)


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML: reading it, from anywhere, gives an equal recipe."""
    return dump_yaml(recipe.model_dump())


def _text(path: str | PathLike[str]) -> str:
    """The text of a file that may be a recipe."""
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise RecipeError("no such file", path=path) from None
    except IsADirectoryError:
        raise RecipeError("a folder, not a file", path=path, hint="name the recipe in it") from None
    except OSError as error:
        raise RecipeError(f"cannot be read: {error.strerror}", path=path) from error
    if len(content) > MOST_BYTES:
        raise RecipeError("too large for a recipe", path=path, expected=f"at most {MOST_BYTES} bytes")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RecipeError("not UTF-8", path=path, line=line, hint="save the file as UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _checked(document: Document, overrides: Sequence[str], folder: Path) -> Recipe:
    if document.value is None:
        raise RecipeError("an empty recipe", path=document.path, hint="it needs a name, a base, experts and a router")
    if not isinstance(document.value, dict):
        problem = RecipeError("not a recipe", expected="a mapping of keys", got=repr(document.value))
        raise document.located(problem, ())
    for override in overrides:
        _override(document, override)
    try:
        return _settled(Recipe.model_validate(document.value), folder)
    except ValidationError as error:
        raise as_recipe_error(error, Recipe, document) from None


def _settled(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with its folders made absolute and its ids with their revisions, to mean the same wherever it lies."""
    root = os.path.abspath(folder / os.path.expanduser(recipe.data_root or ""))
    experts = {
        name: expert.model_copy(update={"path": expert.path and settled(expert.path, folder)})
        for name, expert in recipe.experts.items()
    }
    rivals = [_settled_router(spec, folder) for spec in recipe.router.compare]
    router = _settled_router(recipe.router, folder)
    if rivals:
        router = router.model_copy(update={"compare": rivals})
    return recipe.model_copy(
        update={"data_root": root, "base": recipe.base.settled(folder), "experts": experts, "router": router}
    )


def _settled_router(spec: Spec, folder: Path) -> Spec:
    """A router's section with the folder of the encoder that it reads, if it reads one, made absolute."""
    if isinstance(spec.feature, str):
        return spec
    feature = spec.feature.model_copy(update={"model": settled(spec.feature.model, folder)})
    return spec.model_copy(update={"feature": feature})


def _override(document: Document, override: str) -> None:
    """Put a `key=value` in its place; sections on the way that are not written yet are created."""
    key, equals, text = override.partition("=")
    if not equals or not key or key.endswith("."):
        raise RecipeError("not an override", path=COMMAND_LINE, expected="key=value", got=repr(override))
    try:
        value = load_yaml(text).value
    except RecipeError as error:
        raise RecipeError(error.what, path=COMMAND_LINE, field=key, got=repr(text)) from None

    loc: Loc = ()
    node, rest = document.value, key
    while True:
        step, rest = _step(key, rest, node)
        shapes = [*shapes_at(Recipe, loc, document.value)]
        loc = (*loc, step)
        if not rest:
            break
        if isinstance(node, dict) and node.get(step) is None:
            if shapes and step not in keys_of(shapes):
                raise _on_command_line(unknown_key(str(step), shapes, node), loc)
            if not shapes:
                raise _on_command_line(RecipeError("does not exist", hint=nearest(str(step), list(node))), loc)
            node[step] = {}
            document.marks[loc] = BEHIND_ALL
        node = node[step]
    document.marks = {place: mark for place, mark in document.marks.items() if place[: len(loc)] != loc}
    document.marks[loc] = BEHIND_ALL
    if FOLDER.fullmatch(key) and isinstance(value, str) and (key == "data_root" or is_folder(value)):
        value = os.path.abspath(
            os.path.expanduser(value)
        )  # typed by someone who stands here, not in the recipe's folder
    if value is None and isinstance(node, dict):
        node.pop(step, None)  # what is not written has its default
    else:
        node[step] = value


def _step(key: str, rest: str, node: Any) -> tuple[str | int, str]:
    """The next step of a key into `node`, and what comes after it."""
    if isinstance(node, dict):
        # Names may hold dots, so what is there comes first, and of that the longest.
        for name in sorted(node, key=len, reverse=True):
            if rest == name or rest.startswith((f"{name}.", f"{name}[")):
                return name, rest[len(name) :].removeprefix(".")
    match = STEP.match(rest)
    if match is None:
        raise RecipeError("not a key", path=COMMAND_LINE, expected="names joined by dots", got=repr(key))
    if isinstance(node, dict) and match[1]:
        return match[1], rest[match.end() :]
    if isinstance(node, list) and match[2] and int(match[2]) < len(node):
        return int(match[2]), rest[match.end() :]
    expected = f"an index from 0 to {len(node) - 1}" if isinstance(node, list) else "a section to set it in"
    raise RecipeError("no such entry", path=COMMAND_LINE, field=key, expected=expected, got=repr(node))


def _on_command_line(error: RecipeError, loc: Loc) -> RecipeError:
    return error.at(path=COMMAND_LINE, field=field_name(loc))
