"""Reads the data files of this folder: the wordings of the generated domains, and the pools that fill them.

Knows nothing about what they contain.
"""

import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import yaml

NUMBERS = re.compile(r"(-?\d+) to (-?\d+)(?: by (\d+))?")


def table(name: str) -> dict[str, Any]:
    """The contents of one data file."""
    # The parser in C takes a tenth of the time; a PyYAML built without it reads the same.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return loader(files(__package__).joinpath(name).read_bytes()).get_single_data()


def members(pool: list | str) -> Sequence:
    """The members of a pool: a list, or numbers written as `20 to 190 by 10`, both ends included."""
    if isinstance(pool, list):
        return pool
    numbers = NUMBERS.fullmatch(pool)
    if numbers is None:
        raise ValueError(f"expected a list or `2 to 12`, got {pool!r}")
    first, last, step = (int(number) for number in numbers.groups(default="1"))
    return range(first, last + 1, step)
