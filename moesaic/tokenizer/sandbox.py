"""Jinja with a budget: a template pays for every step, and for every character that it reads, writes or makes.

A rendering that the budget does not cover ends in `Exceeded`, whatever the template does and wherever it does it. The
budget is spent where work can multiply: once for each loop by its length and the size of its body, at each call of a
macro, and at each operation on texts and lists by their sizes. Knows nothing about conversations or files.
"""

import json
import re
from collections.abc import Callable, ItemsView, Iterator, KeysView, ValuesView
from typing import Any

from jinja2 import nodes
from jinja2.environment import Environment, Template
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_context
from jinja2.visitor import NodeTransformer

BUDGET = 1 << 24
"""Steps and characters of one rendering: 32 times the longest conversation, or about a second."""

BITS, DEPTH, WIDTH, LONG = 4096, 32, 64, 512
"""The largest whole number, the deepest list of lists, and the widest indentation that a template may make."""

ITEM, CALL = 8, 64
"""The steps that an item of a list, and a call of a macro, take beside what is in them."""

_PERCENT, _BRACES = re.compile(r"%[^a-zA-Z%]*?(\d{4}|\*)"), re.compile(r"\{[^}]*?(\d{4}|\{)")
WIDE = {"%": (_PERCENT, "%"), "format": (_BRACES, "{"), "format_map": (_BRACES, "{")}
"""What formats a text: the fields that may write more than a thousand characters, and how a field begins."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


METHODS = _words(
    "capitalize casefold count endswith find format index isalnum isalpha isascii isdecimal isdigit islower "
    "isnumeric isspace istitle isupper join lower lstrip partition removeprefix removesuffix replace rfind rindex "
    "rpartition rsplit rstrip split splitlines startswith strip swapcase title upper"
)
"""The methods of text that a template may call."""

FREE = _words("abs attr count d default first last length round safe")
"""The filters that read no more than the type, the length or one item of what they are given."""

LISTED = _words("items list map reject rejectattr reverse select selectattr")
"""The filters that read one item after another, and do no more than list them or what others pay for."""

READING = _words(
    "capitalize dictsort e escape float format indent int join lower max min replace sort string title tojson "
    "trim unique upper"
)
"""The filters that read all that is in what they are given."""

NARROW = _words("indent round tojson")
"""The filters whose arguments multiply what they write."""

COMPARING = _words("!= < <= == > >= eq equalto ge greaterthan gt in le lessthan lower lt ne upper")
"""The tests that read what they are given, rather than its type."""


class Exceeded(Exception):
    """A rendering takes more than its budget, or asks for a single value without measure."""

    hint = "use a base with another chat template"


class Refusal(Exception):
    """A template has called `raise_exception`."""


class _Counted(Context):
    """The variables of one rendering, and what is left of its budget."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.left = BUDGET

    def spend(self, cost: int) -> None:
        self.left -= cost
        if self.left < 0:
            raise Exceeded(f"it takes more than {BUDGET:,} steps and characters")


class _Named(Namespace):
    """A namespace that is written as its name: it may hold itself, or others that hold others."""

    def __repr__(self) -> str:
        return "<namespace>"


def _size(value: Any, limit: int, depth: int = 0) -> int:
    """The size of a value with everything in it, as often as it is in there; stops above `limit`."""
    if isinstance(value, str):
        return len(value) + 1
    if isinstance(value, int) and value.bit_length() > BITS:
        raise Exceeded(f"it makes a number of more than {BITS:,} bits")
    if isinstance(value, range):
        return len(value) + 1
    if not isinstance(value, list | tuple | dict):
        return ITEM
    if depth == DEPTH:
        raise Exceeded(f"it makes lists more than {DEPTH} deep")
    total = ITEM
    for item in value:
        total += _size(item, limit, depth + 1)
        if isinstance(value, dict):
            total += _size(value[item], limit, depth + 1)
        if total > limit:
            break
    return total


def _weigh(context: _Counted, value: Any) -> Any:
    """The same value, after its size is paid."""
    context.spend(len(value) + 1 if isinstance(value, str) else _size(value, context.left))
    return value


def _made(context: _Counted, value: Any) -> Any:
    """The result of an operation, with everything that is computed item by item computed now; its length is paid."""
    if type(value) is str:
        context.spend(len(value))
        return value
    if isinstance(value, Iterator | ItemsView | KeysView | ValuesView):
        value = list(value)
    if isinstance(value, str | list | tuple | dict):
        context.spend(len(value))
    elif isinstance(value, int):
        _size(value, 0)
    return value


def _growth(context: _Counted, name: str, text: str, given: tuple[Any, ...]) -> int:
    """The most characters that a method of a text, or `%`, adds to it. `given`: its arguments."""
    if name == "replace" and len(given) > 1:
        return text.count(str(given[0])) * len(str(given[1]))
    if name == "join" and given and hasattr(given[0], "__len__"):
        return len(given[0]) * len(text)
    if name in WIDE:
        field, begins = WIDE[name]
        if field.search(text):
            raise Exceeded("it formats a field of more than a thousand characters")
        return text.count(begins) * (1000 + _size(given, context.left))
    return 0


GROWING: dict[str, Callable[[Any, tuple[Any, ...]], tuple[str, str, tuple[Any, ...]]]] = {
    "replace": lambda value, given: ("replace", str(value), given),
    "format": lambda value, given: ("%", str(value), given),
    "join": lambda value, given: ("join", str(given[0]) if given else "", (value,)),
}
"""The filters that do what a method of a text does: its name, the text and its arguments."""


# --- operations, each in the place of one of Jinja's ------------------------------------------------------------------


@pass_context
def _each(context: _Counted, items: Any, cost: int) -> Any:
    """The items of a loop, whose body costs `cost`; all its rounds are paid at once."""
    items = items if hasattr(items, "__len__") else list(items)
    context.spend(cost * (1 + len(items)))
    return items


@pass_context
def _begin(context: _Counted, cost: int) -> None:
    """The body of a macro begins."""
    context.spend(CALL + cost)


@pass_context
def _sum(context: _Counted, *parts: Any) -> Any:
    """The parts of `a + b + c`."""
    if all(type(part) is str for part in parts):  # a safe text escapes what is added to it
        return _made(context, "".join(parts))
    total, *rest = parts
    for part in rest:
        total = _made(context, total + part)
    return total


@pass_context
def _text(context: _Counted, *parts: Any) -> str:
    """The text of `a ~ b`, or of what is written."""
    return "".join([str(_weigh(context, part)) for part in parts])


@pass_context
def _read(context: _Counted, value: Any) -> Any:
    """A value that is compared, or names an item."""
    return _weigh(context, value)


@pass_context
def _cut(context: _Counted, value: Any) -> Any:
    """The result of `a[b:c]`."""
    return _made(context, value)


OPERATIONS = {"each": _each, "begin": _begin, "+": _sum, "~": _text, "read": _read, "[:]": _cut}
"""Under names that no template can spell. All take the context, so Jinja computes none when it compiles."""
OPERATIONS = {f" {name}": operation for name, operation in OPERATIONS.items()}


def _bounded_filter(name: str, plain: Environment) -> Callable[..., Any]:
    """A filter that pays for what it reads and makes."""

    @pass_context
    def bounded(context: _Counted, value: Any, *args: Any, **kwargs: Any) -> Any:
        given = (*args, *kwargs.values())
        if given:
            _weigh(context, given)
        if name in READING:
            _weigh(context, value)
        elif name in LISTED and hasattr(value, "__len__"):
            context.spend(ITEM * len(value))
        if name in NARROW:
            if any(isinstance(one, int) and abs(one) > WIDTH for one in given) or _size(given, LONG) > LONG:
                raise Exceeded(f"{name}: it asks for a width of more than {WIDTH}")
            context.spend(_size(value, context.left) * (WIDTH if given else 4))
        elif name in GROWING:
            context.spend(_growth(context, *GROWING[name](value, given)))
        return _made(context, plain.call_filter(name, value, args, kwargs, context))

    return bounded


def _bounded_test(name: str, plain: Environment) -> Callable[..., Any]:
    """A test that pays for what it compares."""

    @pass_context
    def bounded(context: _Counted, value: Any, *args: Any) -> Any:
        _weigh(context, value)
        _weigh(context, args)
        return plain.call_test(name, value, args, {}, context)

    return bounded


class _Sandbox(ImmutableSandboxedEnvironment):
    """The sandbox of Jinja, whose calls and operators pay for what they read and make."""

    intercepted_binops = frozenset(["-", "*", "/", "//", "**", "%"])
    context_class = _Counted

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str):
            return attr in METHODS
        return not isinstance(obj, int | float) and super().is_safe_attribute(obj, attr, value)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator in ("%", "//") and type(left) is type(right) is int:
            return super().call_binop(context, operator, left, right)
        _weigh(context, left)
        _weigh(context, right)
        if operator == "*":
            counts = [abs(one) for one in (left, right) if isinstance(one, int)]
            texts = [len(one) for one in (left, right) if isinstance(one, str | list | tuple)]
            context.spend(max(counts, default=0) * max(texts, default=0))
        if operator == "**" and isinstance(left, int) and isinstance(right, int):
            _size(1 << min(BITS + 1, left.bit_length() * abs(right)), 0)
        if operator == "%" and isinstance(left, str):
            context.spend(_growth(context, operator, left, (right,)))
        return _made(context, super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        given = (*args, *kwargs.values())
        for one in given:
            _weigh(__context, one)
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps `format`
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str):
            __context.spend(len(owner) + _growth(__context, method.__name__, owner, given))
        elif isinstance(owner, list | tuple):
            _weigh(__context, owner)
        return _made(__context, super().call(__context, __obj, *args, **kwargs))


class _Paying(NodeTransformer):
    """Puts the operations of this file into a template, and refuses what none of them bounds."""

    REFUSED = (
        nodes.Block,
        nodes.Extends,
        nodes.Include,
        nodes.Import,
        nodes.FromImport,
        nodes.ScopedEvalContextModifier,
    )

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        if isinstance(node, self.REFUSED) or getattr(node, "recursive", False):
            raise Exceeded(
                f"line {node.lineno}: a {type(node).__name__} that may run without end, or reads other files"
            )
        return super().generic_visit(node, *args, **kwargs)

    def visit_For(self, node: nodes.For) -> nodes.Node:
        cost = _nodes(node)
        node = self.generic_visit(node)
        node.iter = _operation("each", node.iter, nodes.Const(cost))
        return node

    def visit_Macro(self, node: nodes.Macro | nodes.CallBlock) -> nodes.Node:
        cost = _nodes(node)
        node = self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_operation("begin", nodes.Const(cost)), lineno=node.lineno))
        return node

    visit_CallBlock = visit_Macro

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        node = self.generic_visit(node)
        free = (nodes.TemplateData, nodes.Const)
        node.nodes = [one if isinstance(one, free) or _is_text(one) else _operation("~", one) for one in node.nodes]
        return node

    def visit_Add(self, node: nodes.Add) -> nodes.Node:
        parts: list[nodes.Expr] = []
        left: nodes.Expr = node
        while isinstance(left, nodes.Add):
            parts.insert(0, left.right)
            left = left.left
        return _operation("+", *[self.visit(part) for part in (left, *parts)])

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        return _operation("~", *self.generic_visit(node).nodes)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        node = self.generic_visit(node)
        if not all(_is_brief(op) for op in node.ops):
            node.expr = _operation("read", node.expr)
            for op in node.ops:
                op.expr = _operation("read", op.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        node = self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            return _operation("[:]", node)
        if not isinstance(node.arg, nodes.Const):
            node.arg = _operation("read", node.arg)
        return node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:
        node = self.generic_visit(node)
        if not isinstance(node.key, nodes.Const):
            node.key = _operation("read", node.key)
        return node


def _operation(name: str, value: Any, *rest: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(value, f" {name}", list(rest), [], None, None, lineno=value.lineno)


def _is_text(node: nodes.Node) -> bool:
    """Whether the text of a node is paid already."""
    return isinstance(node, nodes.Filter) and node.name in (" +", " ~")


def _is_brief(op: nodes.Operand) -> bool:
    """Whether a comparison reads no more than what the template itself spells."""
    spelled = op.expr.items if isinstance(op.expr, nodes.List | nodes.Tuple) else [op.expr]
    return op.op in ("eq", "ne", *(("in", "notin") if spelled != [op.expr] else ())) and all(
        isinstance(one, nodes.Const) for one in spelled
    )


def _nodes(node: nodes.Node) -> int:
    """The steps of a part of a template: its nodes, and the characters of its texts."""
    texts = (
        str(one.fields and getattr(one, one.fields[0])) for one in node.find_all((nodes.TemplateData, nodes.Const))
    )
    return 1 + sum(1 for _ in node.find_all(nodes.Node)) + sum(map(len, texts))


class _Generation(Extension):
    """Renders the content of `{% generation %}`, which marks the assistant's messages."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise Refusal(message)


def compiled(source: str, strftime: Callable[[str], str]) -> Template:
    """Compile a template with the settings and names of transformers, for which templates are written."""
    options: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "extensions": [_Generation, loopcontrols]}
    plain, sandbox = ImmutableSandboxedEnvironment(**options), _Sandbox(**options)
    plain.filters["tojson"] = _tojson
    sandbox.filters = {name: _bounded_filter(name, plain) for name in FREE | LISTED | READING} | OPERATIONS
    sandbox.tests |= {name: _bounded_test(name, plain) for name in COMPARING}
    del sandbox.globals["lipsum"]
    sandbox.globals |= {"namespace": _Named, "raise_exception": _refuse, "strftime_now": strftime}
    tree = _Paying().visit(sandbox.parse(source))
    tree.set_environment(sandbox)
    return sandbox.from_string(tree)
