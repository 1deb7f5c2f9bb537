"""The domain of program text: functions of the Python standard library, their heads to be continued.

Knows nothing about splits; its groups are the library's modules, so that no module is on both sides of one.
"""

import ast
from collections.abc import Iterator

from moesaic.data.demo.stdlib import Source, sources

PROMPT, RESPONSE = (60, 250), (100, 450)  # the fewest and the most characters of each

Function = ast.FunctionDef | ast.AsyncFunctionDef


def groups(seed: int) -> dict[str, list[dict]]:
    """The rows of every module; `prompt + response` is the beginning of a function, as it stands in the library."""
    return {
        module: [row for file in files for function in functions(file.tree) if (row := continuation(file, function))]
        for module, files in sources().items()
    }


def functions(node: ast.AST) -> Iterator[Function]:
    """The functions and methods under `node`, in the order of the file, but none inside another."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function):
            yield child
        else:
            yield from functions(child)


def continuation(file: Source, function: Function) -> dict | None:
    """One row: the head of a function and what follows it, or None where either has not the size of a lesson."""
    margin, start, end = function.col_offset, first_line(function), function.end_lineno or function.lineno
    lines = [line[margin:] for line in file.lines[:end]]
    body = first_line(function.body[0])
    head = lines[start - 1 : body - 1]
    if docstring := ast.get_docstring(function):
        summary = docstring.strip().partition("\n")[0]
        head.append(f'{" " * (function.body[0].col_offset - margin)}"""{summary}"""')
        body = (function.body[0].end_lineno or body) + 1
    while body < end and len("\n".join(head)) < PROMPT[0]:
        head.append(lines[body - 1])
        body += 1
    prompt = "\n".join(head) + "\n"
    # A cut after a whole statement leaves text that still parses, or nearly.
    cuts = {node.end_lineno or 0 for node in ast.walk(function) if isinstance(node, ast.stmt)}
    bodies = ["\n".join(lines[body - 1 : cut]).strip("\n") for cut in sorted(cuts) if cut >= body]
    response = max((text for text in bodies if len(text) <= RESPONSE[1]), key=len, default="")
    good = PROMPT[0] <= len(prompt) <= PROMPT[1] and len(response) >= RESPONSE[0]
    return {"prompt": prompt, "response": response} if good else None


def first_line(node: ast.stmt) -> int:
    """The line on which `node` starts, its decorators included."""
    return min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
