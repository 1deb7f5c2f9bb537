"""Reads YAML text as plain values with the position of every key, and writes plain values as YAML.

Knows nothing about recipes. Reads the YAML 1.2 core schema: `no` is text, `1e-3` a number, keys are always text.
"""

import re
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import yaml

from moesaic.errors import MoesaicError, RecipeError

E = TypeVar("E", bound=MoesaicError)
Loc = tuple[str | int, ...]

COMMAND_LINE = "<command line>"
BEHIND_ALL = sys.maxsize
"""Offset of values from the command line: behind the end of every file."""

MOST_NODES = 10_000
"""Maximum number of values in a recipe, aliases expanded; real recipes have some hundred."""

TOO_MANY = f"more than {MOST_NODES} values, aliases expanded"

TAG = "tag:yaml.org,2002:"
SCALARS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "null": (r"~|null|Null|NULL|", lambda text: None),
    "bool": (r"true|True|TRUE|false|False|FALSE", lambda text: text.lower() == "true"),
    "int": (r"[-+]?[0-9]{1,19}", int),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        lambda text: float(re.sub(r"\.(?=[inIN])", "", text)),
    ),
    "str": (r"(?s:.*)", str),
}
"""Tag -> pattern of its plain words, and their value; the first match decides."""

TAGS: dict[type[yaml.Node], Collection[str]] = {
    yaml.MappingNode: ("map",),
    yaml.SequenceNode: ("seq",),
    yaml.ScalarNode: SCALARS,
}

RESOLVERS = [(TAG + tag, re.compile(rf"(?:{pattern})\Z", re.ASCII)) for tag, (pattern, _) in SCALARS.items()]


class _Loader(yaml.SafeLoader):
    # PyYAML itself resolves scalars as YAML 1.1 does.
    yaml_implicit_resolvers = {None: RESOLVERS}  # noqa: RUF012
    composed = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Refuses a large document while it is read, because expanding it could take any time."""
        self.composed += 1
        if self.composed > 2 * MOST_NODES:  # keys are nodes too
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(problem=TOO_MANY, problem_mark=mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    # Both versions, so that text is quoted if any reader could take it for another type.
    yaml_implicit_resolvers = {**yaml.SafeDumper.yaml_implicit_resolvers, None: RESOLVERS}  # noqa: RUF012

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        plain = not any(isinstance(value, dict | list) for value in sequence)
        return super().represent_sequence(tag, sequence, flow_style=plain)


@dataclass
class Document:
    """Plain values and their positions: `marks` are offsets into `text`."""

    value: Any
    path: str | None = None
    text: str = ""
    marks: dict[Loc, int] = field(default_factory=dict)

    def find(self, loc: Loc) -> Loc:
        """Reduce `loc` to the steps that exist in this document.

        Skips the index of a list that is written as its single entry, and all keys of bare text.
        """
        found: Loc = ()
        value = self.value
        for step in loc:
            if isinstance(value, dict) and isinstance(step, str):
                found, value = (*found, step), value.get(step, {})
            elif isinstance(value, list) and isinstance(step, int):
                found, value = (*found, step), value[step]
        return found

    def at(self, loc: Loc) -> Any:
        value = self.value
        for step in loc:
            value = value[step]
        return value

    def mark(self, loc: Loc) -> Loc:
        """The longest prefix of `loc` with a known position."""
        return next((loc[:end] for end in range(len(loc), 0, -1) if loc[:end] in self.marks), ())

    def order(self) -> Callable[[Loc], int]:
        """Sort key of places: as in the text, missing keys at the end of their section, the command line last."""
        ends: dict[Loc, int] = {}
        for place, offset in self.marks.items():
            for end in range(len(place) + 1):
                ends[place[:end]] = max(offset, ends.get(place[:end], 0))

        def offset_of(loc: Loc) -> int:
            mark = self.mark(loc)
            return self.marks.get(loc, 0) if mark == loc else ends.get(mark, 0)

        return offset_of

    def located(self, error: E, loc: Loc) -> E:
        offset, field = self.marks.get(self.mark(loc)), field_name(loc) or None
        if offset == BEHIND_ALL:
            return error.at(path=COMMAND_LINE, field=field)
        return error.at(path=self.path, line=None if offset is None else line_at(self.text, offset), field=field)

    @contextmanager
    def locating(self) -> Iterator[None]:
        """Add the path and the line to errors that name a key of this document and no path."""
        try:
            yield
        except MoesaicError as error:
            field = error.field
            if field and error.path is None:
                places = ((loc, field_name(loc)) for loc in self.marks if loc)
                found = (loc for loc, name in places if field == name or field.startswith((f"{name}.", f"{name}[")))
                if loc := max(found, key=len, default=()):
                    self.located(error, loc)
            raise


def field_name(loc: Loc) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in loc).removeprefix(".")


def line_at(text: str, offset: int) -> int:
    """Line of an offset as editors count lines, which break at fewer characters than YAML does."""
    return text.count("\n", 0, offset) + 1


def load(text: str, path: str | None = None) -> Document:
    """Read YAML `text`; raises RecipeError, with the line, for anything except plain YAML."""
    document = Document(None, path, text)
    try:
        root = _Loader(text).get_single_node()
        document.value = None if root is None else _build(root, (), document.marks, [0])
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = line_at(text, mark.index) if mark else None
        what = ", ".join(part for part in (error.context, error.problem) if part)
        raise RecipeError(f"not YAML: {what}", path=path, line=line) from None
    except yaml.reader.ReaderError as error:
        what, line = "not YAML: a character that is not allowed", line_at(text, error.position)
        raise RecipeError(what, path=path, line=line, got=ascii(chr(error.character))) from None
    except RecursionError:
        raise RecipeError("unsupported YAML: nested too deeply", path=path) from None
    return document


def dump(value: Any) -> str:
    """Write plain values as YAML; `load` reads equal values back."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _build(node: yaml.Node, loc: Loc, marks: dict[Loc, int], built: list[int]) -> Any:
    """The value of a node; adds the positions of its parts to `marks`."""
    built[0] += 1
    if built[0] > MOST_NODES:
        raise _refusal(node, TOO_MANY)
    tag = node.tag.removeprefix(TAG)
    if tag not in TAGS[type(node)]:
        raise _refusal(node, f"tag {node.tag} is not allowed")
    marks.setdefault(loc, node.start_mark.index)
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _refusal(key, "a key that is not text")
            name = _text(key)
            if name in mapping:
                raise _refusal(key, f"key '{name}' is written twice")
            marks[*loc, name] = key.start_mark.index
            mapping[name] = _build(value, (*loc, name), marks, built)
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [_build(value, (*loc, index), marks, built) for index, value in enumerate(node.value)]
    pattern, value_of = SCALARS[tag]
    if not re.fullmatch(pattern, node.value):
        raise _refusal(node, f"{node.value!r} does not match its tag")
    return value_of(_text(node))


def _text(node: yaml.Node) -> str:
    if re.search("[\0\ud800-\udfff]", node.value):
        raise _refusal(node, "text with NUL or half a character (a surrogate)")
    return node.value


def _refusal(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(problem=problem, problem_mark=node.start_mark)
