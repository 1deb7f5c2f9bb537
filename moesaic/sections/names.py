"""Names of experts and runs, which are names of folders on every file system.

Knows nothing about experts and runs.
"""

import re
from typing import Literal, get_args

from moesaic.errors import RecipeError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}

Control = Literal["base", "joint", "joint_wide", "average", "uniform", "random", "keyword", "oracle", "oracle_best"]

RESERVED = (*get_args(Control), "router", "all", "unseen")
"""Words that tables use beside the names of experts."""


def validate_name(name: str, what: str) -> str:
    """Return `name` if it is a valid folder name everywhere; `what` names the thing in the error."""
    if not NAME.fullmatch(name):
        expected = "1 to 96 of A-Z, a-z, 0-9, '.', '_' and '-', a letter or digit first"
        raise RecipeError(f"not a name for {what}", expected=expected, got=repr(name))
    if name.endswith("."):
        raise RecipeError(f"not a name for {what}", got=repr(name), hint="a name must not end with a dot")
    if name.split(".")[0].lower() in DEVICES:
        raise RecipeError(f"not a name for {what}", got=repr(name), hint="Windows reserves this name for a device")
    return name


def validate_expert(name: str, seen: dict[str, str]) -> None:
    """Check a name of an expert and add it to `seen` (lower case -> as written); raises RecipeError."""
    validate_name(name, "an expert")
    if name.lower() in RESERVED:
        raise RecipeError("a reserved name", hint=f"reserved names are {', '.join(RESERVED)}")
    if (other := seen.get(name.lower())) is not None:
        raise RecipeError("given twice" if other == name else f"differs from expert '{other}' only in case")
    seen[name.lower()] = name
