"""Reads a recipe from a file or a mapping, with the overrides of the command line, and writes it as text.

Other documents of sections are read in the same way. Knows nothing about the meaning of keys, except which of them are
paths.
"""

import copy
import os
import re
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from moesaic.errors import RecipeError, nearest
from moesaic.recipe.problems import as_recipe_error, keys_of, shapes_at, unknown_key
from moesaic.recipe.schema import Recipe
from moesaic.sections.document import BEHIND_ALL, COMMAND_LINE, Document, Loc, field_name
from moesaic.sections.document import dump as dump_yaml
from moesaic.sections.document import load as load_yaml
from moesaic.sections.named_recipes import recipe_at
from moesaic.sections.places import is_folder, relative, settled
from moesaic.sections.routers import RouterSpec

Spec = TypeVar("Spec", bound=RouterSpec)
S = TypeVar("S", bound=BaseModel)

MOST_BYTES = 2**20
# Keys whose values may be folders.
FOLDER = re.compile(r"data_root|base\.path|experts\..+\.path|router\..*feature\.model")
STEP = re.compile(r"([^.\[\]]+)\.?|\[(\d{1,6})\]\.?")


def read(path: str | PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe: a file, or one of the package by its name, such as demo. Raises RecipeError.

    Each override is `key=value` with a value in YAML.
    """
    return read_document(path, overrides)[0]


def read_document(path: str | PathLike[str], overrides: Sequence[str] = ()) -> tuple[Recipe, Document]:
    """Read a recipe as `read` does, with the document that locates later errors in it."""
    file = recipe_at(path)
    document = load_document(file)
    return _settled(checked(document, overrides, Recipe), file.parent), document


def parse(
    mapping: Mapping[str, Any], overrides: Sequence[str] = (), source: str | PathLike[str] | None = None
) -> Recipe:
    """Check a recipe that is a mapping; paths are relative to the folder of the file `source`, or to this one."""
    document = Document(copy.deepcopy(dict(mapping)), None if source is None else os.fspath(source))
    return _settled(checked(document, overrides, Recipe), Path(source or ".").parent)


def dump(recipe: Recipe, folder: Path | None = None) -> str:
    """Write the resolved recipe as YAML, which reads as an equal recipe from any folder.

    `folder`: the folder of the file; the recipe names no folder of this machine, and reads as an equal one from there.
    """
    if folder is not None:
        root = os.path.relpath(recipe.data_root or "", folder)
        recipe = _placed(recipe, root, lambda place: relative(place, folder))
    return dump_yaml(recipe.model_dump())


def load_document(file: str | PathLike[str]) -> Document:
    """Read a YAML file as plain values with their positions."""
    return load_yaml(_text(file), os.fspath(file))


def _text(path: str | PathLike[str]) -> str:
    """Text of a recipe file."""
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
    except IsADirectoryError:
        raise RecipeError("a folder, not a file", path=path, hint="name the recipe file in it") from None
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


def checked(document: Document, overrides: Sequence[str], model: type[S]) -> S:
    """Apply overrides to a document and check it: a recipe, or any other section. Raises RecipeError at its place."""
    word = model.__name__.lower()
    if document.value is None:
        *first, last = [name for name, field in model.model_fields.items() if field.is_required()]
        raise RecipeError(f"an empty {word}", path=document.path, hint=f"it needs {', '.join(first)} and {last}")
    if not isinstance(document.value, dict):
        problem = RecipeError(f"not a {word}", expected="a mapping of keys", got=repr(document.value))
        raise document.located(problem, ())
    for override in overrides:
        _override(document, override, model)
    try:
        return model.model_validate(document.value)
    except ValidationError as error:
        raise as_recipe_error(error, model, document) from None


def _settled(recipe: Recipe, folder: Path) -> Recipe:
    """Make a recipe independent of its folder: absolute folders, and ids with revisions."""
    root = os.path.abspath(folder / os.path.expanduser(recipe.data_root or ""))
    return _placed(recipe, root, lambda place: settled(place, folder))


def _placed(recipe: Recipe, root: str, put: Callable[[str], str]) -> Recipe:
    """Rewrite every place of a model by `put`, and set the folder of the data."""
    experts = {
        name: expert.model_copy(update={"path": expert.path and put(expert.path)})
        for name, expert in recipe.experts.items()
    }
    rivals = [_placed_router(spec, put) for spec in recipe.router.compare]
    router = _placed_router(recipe.router, put)
    if rivals:
        router = router.model_copy(update={"compare": rivals})
    base = recipe.base.placed(put)
    return recipe.model_copy(update={"data_root": root, "base": base, "experts": experts, "router": router})


def _placed_router(spec: Spec, put: Callable[[str], str]) -> Spec:
    if isinstance(spec.feature, str):
        return spec
    feature = spec.feature.model_copy(update={"model": put(spec.feature.model)})
    return spec.model_copy(update={"feature": feature})


def _override(document: Document, override: str, model: type[BaseModel]) -> None:
    """Set `key=value` in a document; creates missing sections on the way."""
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
        shapes = [*shapes_at(model, loc, document.value)]
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
        value = os.path.abspath(os.path.expanduser(value))  # relative to the working folder, not the recipe's
    if value is None and isinstance(node, dict):
        node.pop(step, None)  # a missing key has its default
    else:
        node[step] = value


def _step(key: str, rest: str, node: Any) -> tuple[str | int, str]:
    """The next step of a key into `node`, and the rest of the key."""
    if isinstance(node, dict):
        # Names may contain dots, so the longest existing name wins.
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
