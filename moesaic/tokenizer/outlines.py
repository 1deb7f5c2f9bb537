"""Outlines of conversations: the text that a chat template writes around contents, whatever they are.

A template that writes contents and never looks into them writes the same text around all of them, so it is rendered
once for each sequence of roles. Knows nothing about token ids.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moesaic.tokenizer.conversation import Conversation, Message

if TYPE_CHECKING:
    from jinja2 import nodes

OPEN, CLOSE = "\ufdee", "\ufdef"  # noncharacters around the number of a gap
REPEATED = 2  # times that a content may be written, on average: the sandbox pays for an outline, not for contents
GAP = re.compile(f"{OPEN}(\\d+)(l?r?){CLOSE}")


@dataclass(frozen=True)
class Gap:
    """The gap for the content of the message at `index`, without white space at its left or right end."""

    index: int
    left: bool = False
    right: bool = False

    def content(self, conversation: Conversation) -> str:
        text = conversation[self.index].content
        text = text.lstrip() if self.left else text
        return text.rstrip() if self.right else text


@dataclass(frozen=True)
class Outline:
    """Texts with a gap between each two."""

    texts: tuple[str, ...]
    gaps: tuple[Gap, ...] = ()

    def filled(self, conversation: Conversation) -> str:
        if not self.gaps:
            return self.texts[0]
        pieces = [self.texts[0]]
        for gap, text in zip(self.gaps, self.texts[1:], strict=True):
            pieces += gap.content(conversation), text
        return "".join(pieces)

    def starts(self, other: "Outline") -> bool:
        """True if every text of `other` begins with the text of this outline for the same conversation."""
        count = len(self.gaps)
        same = self.gaps == other.gaps[:count] and self.texts[:count] == other.texts[:count]
        return same and other.texts[count].startswith(self.texts[count])


NOTHING = Outline(("",))


class Looked(Exception):
    """A template looks into a content, so its text depends on more than roles."""


class Content(str):
    """A content that can be written, joined to text and stripped, and refuses every other use.

    A `str`, since templates ask for the type of a content, with a length, by which the sandbox counts.
    """

    @staticmethod
    def of(gap: Gap) -> "Content":
        return Content(f"{OPEN}{gap.index}{'l' * gap.left}{'r' * gap.right}{CLOSE}")

    def __str__(self) -> str:
        return str.__str__(self)

    def __add__(self, other: str) -> "Content":
        return Content(str.__add__(self, other))

    def __radd__(self, other: str) -> "Content":
        return Content(str.__add__(other, self))

    def __getattribute__(self, name: str) -> Any:
        if name == "__class__":  # of the sandbox, which asks for types; no template may
            return Content
        if name not in STRIPS:
            raise Looked(name)
        found = GAP.fullmatch(str.__str__(self))
        if not found:
            raise Looked(f"{name} of a content with text around it")

        def strip(characters: None = None) -> Content:
            if characters is not None:
                raise Looked(name)
            sides, more = found[2], STRIPS[name]
            return Content.of(Gap(int(found[1]), "l" in sides + more, "r" in sides + more))

        return strip


STRIPS = {"strip": "lr", "lstrip": "l", "rstrip": "r"}


def _refuse(name: str) -> Callable[..., Any]:
    def refuse(*_: object) -> Any:
        raise Looked(name)

    return refuse


for _name in (
    *("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__hash__", "__bool__", "__iter__"),
    *("__contains__", "__getitem__", "__mod__", "__rmod__", "__mul__", "__rmul__", "__format__", "__repr__"),
):
    setattr(Content, _name, _refuse(_name))

_NODES = {
    *("Template", "Output", "TemplateData", "Const", "Name", "NSRef", "Getattr", "Getitem", "Slice", "If", "CondExpr"),
    *("For", "Assign", "Operand", "And", "Or", "Not", "Add", "Sub", "Mod", "Neg", "List", "Tuple", "Keyword", "Break"),
    *("Continue", "Compare", "Call", "Filter", "Test"),
}
_FUNCTIONS = {"raise_exception", "strftime_now", "namespace"}
_FILTERS = {"trim", "first", "last", "list"}
_TESTS = {"defined", "undefined", "none", "string", "mapping", "true", "false", "boolean", "even", "odd"}


def traceable(node: "nodes.Node") -> bool:
    """True if a syntax tree uses only what `Content` can follow: no text that is built in other ways, and no content
    as an argument of what does not ask it.
    """
    return _followed(node) and all(map(traceable, node.iter_child_nodes()))


def _followed(node: Any) -> bool:
    match kind := type(node).__name__:
        case "Call":
            named = getattr(node.node, "name", None) in _FUNCTIONS
            return named or (getattr(node.node, "attr", None) in STRIPS and not node.args)
        case "Filter":
            counted = node.name == "length" and getattr(node.node, "name", None) == "messages"
            return counted or (node.name in _FILTERS and not node.args)
        case "Test":
            return node.name in _TESTS and not node.args
        case "Compare":
            left, operands = type(node.expr).__name__, node.ops
            return all(one.op not in ("in", "notin") or left == "Const" or _listed(one.expr) for one in operands)
        case _:
            return kind in _NODES


def _listed(node: Any) -> bool:
    return type(node).__name__ in ("List", "Tuple")


def outline_of(roles: tuple[str, ...], render: Callable[[Conversation], str]) -> Outline | None:
    """The outline of every conversation of these roles.

    None where the template looks into contents, repeats them, or refuses these roles. `render`: of a template whose
    tree is `traceable`, and whose source has no noncharacters.
    """
    contents = (Content.of(Gap(index)) for index in range(len(roles)))
    try:
        written = render(tuple(map(Message, roles, contents)))
    except Exception:  # rendered for the conversation itself, the template says what it refuses
        return None
    texts = GAP.split(written)
    if len(texts) > 3 * REPEATED * len(roles) + 1:
        return None
    gaps = zip(texts[1::3], texts[2::3], strict=True)
    return Outline(tuple(texts[::3]), tuple(Gap(int(index), "l" in sides, "r" in sides) for index, sides in gaps))
