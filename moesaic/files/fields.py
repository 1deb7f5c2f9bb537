"""Types of plain data: the fields that a table must have or may have, and the types of their values.

A type is written as what it describes: `str`, `int` (no bool), `float` (also a whole number), `bool`, `None`, `dict`;
`[str]` is a list of texts, `{str: int}` a table with any names, `{"a": int, "b?": str}` one that has `a` and may
have `b` and others, `(int, None)` either of the two, and a text itself, as in `("nats", "score")`, only this text.
Knows nothing about files.
"""

from collections.abc import Iterator
from typing import Any

Type = Any
MISSING = object()
"""The value of a field that a table should have and has not."""

HEAD: Type = {"labels": [str], "dense": bool, "bias": bool, "parameters": int, "trained?": bool}

ADOPTED_ROUTER: Type = {
    **{"kind": str, "accuracy?": float, "right?": {str: int}, "of?": {str: int}, "alike?": [str], "overlap?": float},
    **{"abstain?": ("auto", "off", float), "abstained_own?": float, "abstained_neutral?": float},
    "groups?": {str: [str]},
}

MANIFESTS: dict[str, Type] = {
    "base": {"fingerprint?": str, "shapes?": {str: [int]}},
    "expert": {
        **{"adapter": str, "fingerprint": str, "base_fingerprint": str, "parameters": int, "rank?": int},
        **{"alpha?": float, "targets?": [str], "layers?": [int], "head?": (HEAD, None), "shared?": [str]},
        "own_parameters?": int,
    },
    "router": {
        **{"router": str, "feature": str, "base_fingerprint": str, "encoder_fingerprint?": str},
        "selection": {"kind": str, "k": (int, None), "renormalise": bool},
        "shape": {
            **{"words?": [[str]], "num_features?": int, "num_experts?": int, "hidden?": [int], "width?": int},
            **{"heads?": int, "dropout?": float, "bias?": bool, "noise?": bool, "widths?": {str: int}},
            **{"first?": bool, "groups?": [[int]]},
        },
        "guard?": {"shape": {"num_features": int, "num_experts": int, "hidden": [int]}, "least": float},
    },
    "mixture": {
        **{"site?": str, "level?": str, "combine?": str, "disabled?": [str]},
        **{"labels?": {str: [str]}, "length?": int, "pool?": str, "origins?": {str: {str: str}}},
        "base?": ({"place": str, "fingerprint": str}, None),
        "adopted?": {"router": ADOPTED_ROUTER, "experts": {str: dict}},
    },
    "encoder": {
        **{"fingerprint": str, "family?": str, "parameters?": int, "pool?": str, "normalise?": bool, "limit?": int},
    },
    "tokens": {
        **{"dtype": ("<u2", "<u4"), "vocab_size": int, "eos": int, "unseen_share": float, "repeated": int},
        **{"train": {"texts": int, "tokens": int, "files": int}, "unseen": {"texts": int, "tokens": int, "files": int}},
    },
    "checkpoint": {
        "inputs": dict,
        "state": {"step": int, "best": (float, None), "best_step": int, "misses": int},
        **{"done": bool, "log_bytes": int, "timing": {"seconds": float}},
    },
    "continuous": {
        "round": int,
        "last": (str, None),
        "experts": {str: {"trial": str, "steps": int, "misses": int, "kept": int}},
        "rows": {str: {str: [int]}},
        "digests": {str: str},
        "sections": {str: dict},
        "start": {str: {str: float}},
        "line": (dict, None),
    },
}
"""The fields that are read of each kind of manifest, beside those of all kinds and the names of experts."""

COMMON: Type = {
    **{"package_version": str, "name?": str, "seed?": (int, None), "metrics?": {str: (float, None)}},
    **{"stage_key?": str, "logs?": {str: int}},
}

EVALUATION: Type = {
    **{"verdict": {"sentence": str}, "domains": [str], "router": {"accuracy?": float}},
    "timing": {"stages?": {str: float}},
}
"""The fields of an evaluation that are printed."""


def faults(value: Any, wanted: Type, field: str = "") -> Iterator[tuple[str, str, Any]]:
    """The fields of a value that are not as wanted: path, the type expected, the value."""
    match wanted:
        case tuple():
            found = [list(faults(value, one, field)) for one in wanted]
            if all(found):
                yield next((some[0] for some in found if some[0][0] != field), (field, written(wanted), value))
        case [inner] if isinstance(value, list):
            for index, one in enumerate(value):
                yield from faults(one, inner, f"{field}[{index}]")
        case dict() if isinstance(value, dict):
            for name, inner in wanted.items():
                yield from _named_faults(value, name, inner, field)
        case type() if type(value) is wanted or (wanted is float and type(value) is int):
            return
        case None | str() if value == wanted:
            return
        case _:
            yield field, written(wanted), value


def _named_faults(value: dict[str, Any], name: Any, wanted: Type, field: str) -> Iterator[tuple[str, str, Any]]:
    if name is str:
        for key, one in value.items():
            yield from faults(one, wanted, f"{field}.{key}" if field else key)
        return
    key = name.removesuffix("?")
    if key in value:
        yield from faults(value[key], wanted, f"{field}.{key}" if field else key)
    elif not name.endswith("?"):
        yield f"{field}.{key}" if field else key, written(wanted), MISSING


NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false", dict: "a table", None: "null"}


def written(wanted: Type) -> str:
    """A type in words."""
    match wanted:
        case tuple():
            return " or ".join(map(written, wanted))
        case [inner]:
            return f"a list, each {written(inner)}"
        case dict():
            return "a table"
        case str():
            return wanted
    return NAMES[wanted]
