"""Names that become folders, on every file system: of experts and of runs.

Knows nothing about what is named.
"""

import re
from typing import Literal, get_args

from moesaic.errors import RecipeError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}

Control = Literal["base", "joint", "joint_wide", "average", "uniform", "random", "keyword", "oracle", "oracle_best"]

RESERVED = (*get_args(Control), "router", "all", "unseen")
"""Words that stand beside the experts' names in every table, so no expert may be called one."""


def validate_name(name: str, what: str) -> str:
    """`name` itself, if it can be a folder anywhere; `what` says in the error what it is the name of."""
    if not NAME.fullmatch(name):
        expected = "1 to 96 of the letters A-Z and a-z, digits, '.', '_' and '-', beginning with a letter or a digit"
        raise RecipeError(f"not a name for {what}", expected=expected, got=repr(name))
    if name.endswith("."):
        raise RecipeError(f"not a name for {what}", got=repr(name), hint="a name may not end with a dot")
    if name.split(".")[0].lower() in DEVICES:
        raise RecipeError(f"not a name for {what}", got=repr(name), hint="Windows keeps this name for a device")
    return name


def validate_expert(name: str, seen: dict[str, str]) -> None:
    """Refuse a name that no expert can have beside those `seen` (in lower case -> as written), which it joins."""
    validate_name(name, "an expert")
    if name.lower() in RESERVED:
        raise RecipeError("a reserved name", hint=f"no expert can be called {', '.join(RESERVED)}")
    if (other := seen.get(name.lower())) is not None:
        raise RecipeError("given twice" if other == name else f"differs from expert '{other}' only in case")
    seen[name.lower()] = name
