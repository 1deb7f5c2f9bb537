"""Reads functions, docstrings and imports from the source of the Python standard library, by module.

Knows nothing about rows or splits.
"""

import ast
import sysconfig
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from moesaic.data.demo.tables import table
from moesaic.errors import DataError

Definition = ast.FunctionDef | ast.AsyncFunctionDef


class Function(NamedTuple):
    """Lines of a function: the head with the first line of the docstring, and the body.

    `ends`: numbers of body lines after which a statement is complete.
    """

    head: list[str]
    body: list[str]
    ends: list[int]


class Module(NamedTuple):
    """Functions of a module, its docstrings, those of functions without the first paragraph, and blocks of imports."""

    functions: list[Function]
    docstrings: list[str]
    imports: list[list[str]]


@cache
def modules() -> dict[str, Module]:
    """All modules, packages with their submodules, independent of the order on disk."""
    root = Path(sysconfig.get_path("stdlib"))
    found = {name: Module([], [], []) for name in table("modules.yaml")["modules"]}
    for name, module in found.items():
        for path in files(root, name):
            with tokenize.open(path) as file:
                text = file.read()
            tree, lines = ast.parse(text), text.splitlines()
            module.functions.extend(read(node, lines) for node in definitions(tree))
            module.docstrings.extend(docstrings(tree))
            module.imports.extend(blocks(tree, lines))
    if not any(module.functions for module in found.values()):
        hint = "the demo data needs the .py files of the standard library"
        raise DataError("no source of the Python standard library", path=root, hint=hint)
    return found


def files(root: Path, name: str) -> list[Path]:
    """Files of module `name`, a single file or a package, depending on the Python version."""
    package = (path for path in (root / name).rglob("*.py") if "test" not in path.relative_to(root).parts)
    return [path for path in (root / f"{name}.py", *sorted(package)) if path.is_file()]


def definitions(node: ast.AST) -> Iterator[Definition]:
    """Functions and methods under `node` in the order of the file, without nested functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Definition):
            yield child
        elif isinstance(child, ast.stmt):
            yield from definitions(child)


def docstrings(node: ast.Module | ast.ClassDef | Definition) -> Iterator[str]:
    """Docstrings of `node` and its definitions; those of functions without the first paragraph, which heads quote."""
    text = ast.get_docstring(node) or ""
    yield text.partition("\n\n")[2] if isinstance(node, Definition) else text
    for child in node.body:
        if isinstance(child, ast.ClassDef | Definition):
            yield from docstrings(child)


def blocks(tree: ast.Module, lines: list[str]) -> Iterator[list[str]]:
    """Lines of imports that follow each other at the top of a module, two at least and eight at most."""
    block: list[str] = []
    for node in [*tree.body, ast.Pass()]:
        if isinstance(node, ast.Import | ast.ImportFrom) and node.lineno == node.end_lineno and len(block) < 8:
            block.append(lines[node.lineno - 1])
            continue
        if len(block) > 1:
            yield block
        block = []


def read(node: Definition, lines: list[str]) -> Function:
    """The function at `node` without indentation, with a one-line docstring."""
    first, margin = first_line(node), node.col_offset
    own = [line[margin:] for line in lines[first - 1 : node.end_lineno]]
    start = first_line(node.body[0]) - first
    head = own[:start]
    if docstring := ast.get_docstring(node):
        summary = docstring.strip().partition("\n")[0]
        head.append(" " * (node.body[0].col_offset - margin) + f'"""{summary}"""')
        start = (node.body[0].end_lineno or first) + 1 - first
    ends = {(child.end_lineno or first) + 1 - first for child in ast.walk(node) if isinstance(child, ast.stmt)}
    return Function(head, own[start:], sorted(end - start for end in ends if end > start))


def first_line(node: ast.stmt) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
