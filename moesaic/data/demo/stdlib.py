"""Finds and parses the Python standard library's own source, module by module.

Knows nothing about rows, splits, or what the parsed source is used for.
"""

import ast
import sysconfig
import tokenize
from functools import cache
from pathlib import Path
from typing import NamedTuple

from moesaic.errors import DataError

# What Python 3.11 to 3.14 all have, without tables and what distributions often strip; enough to choose from.
MODULES = (
    "_collections_abc", "_pyio", "_strptime", "_weakrefset", "abc", "argparse", "ast", "base64", "bdb", "bisect",
    "bz2", "calendar", "cmd", "code", "codeop", "collections", "colorsys", "compileall", "concurrent",
    "configparser", "contextlib", "copy", "copyreg", "cProfile", "csv", "dataclasses", "difflib", "dis", "doctest",
    "enum", "filecmp", "fileinput", "fnmatch", "fractions", "ftplib", "functools", "genericpath", "getopt",
    "getpass", "gettext", "glob", "graphlib", "gzip", "hashlib", "heapq", "hmac", "imaplib", "inspect", "ipaddress",
    "json", "linecache", "logging", "lzma", "mailbox", "mimetypes", "modulefinder", "netrc", "ntpath", "operator",
    "numbers", "optparse", "os", "pdb", "pickle", "pkgutil", "platform", "plistlib", "poplib", "posixpath",
    "pprint", "profile", "pstats", "pty", "pyclbr", "py_compile", "pydoc", "queue", "quopri", "random", "re",
    "reprlib", "rlcompleter", "runpy", "sched", "secrets", "selectors", "shelve", "shlex", "shutil", "smtplib",
    "socket", "socketserver", "ssl", "statistics", "string", "subprocess", "symtable", "tabnanny", "tarfile",
    "tempfile", "textwrap", "threading", "timeit", "tokenize", "tomllib", "trace", "traceback", "tracemalloc",
    "types", "typing", "unittest", "urllib", "uuid", "warnings", "wave", "weakref", "webbrowser", "wsgiref",
    "zipapp", "zipfile", "zoneinfo",
)  # fmt: skip


class Source(NamedTuple):
    """One file of a module: its lines, and its syntax tree."""

    lines: list[str]
    tree: ast.Module


@cache
def sources() -> dict[str, list[Source]]:
    """The parsed files of every module, packages with all their submodules; independent of the disk's order."""
    root = Path(sysconfig.get_path("stdlib"))
    found = {name: [parsed(path) for path in files(root, name)] for name in MODULES}
    if not any(found.values()):
        raise DataError(
            "no source of the Python standard library found",
            path=root,
            hint="the demo data needs a Python whose .py files are on disk",
        )
    return found


def files(root: Path, name: str) -> list[Path]:
    """The files of module `name`, which is a single file in one Python version and a package in the next."""
    package = (path for path in (root / name).rglob("*.py") if "test" not in path.relative_to(root).parts)
    return [path for path in (root / f"{name}.py", *sorted(package)) if path.is_file()]


def parsed(path: Path) -> Source:
    with tokenize.open(path) as file:
        text = file.read()
    return Source(text.splitlines(), ast.parse(text))
