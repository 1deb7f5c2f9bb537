"""Reads the data files of this folder, with the wordings and pools of the generated domains.

Knows nothing about their content.
"""

import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import yaml

NUMBERS = re.compile(r"(-?\d+) to (-?\d+)(?: by (\d+))?")


def table(name: str) -> dict[str, Any]:
    # The parser in C is ten times faster; without it, the result is the same.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return loader(files(__package__).joinpath(name).read_bytes()).get_single_data()


def members(pool: list | str) -> Sequence:
    """Members of a pool: a list, or numbers such as `20 to 190 by 10`, including both ends."""
    if isinstance(pool, list):
        return pool
    numbers = NUMBERS.fullmatch(pool)
    if numbers is None:
        raise ValueError(f"expected a list or `2 to 12`, got {pool!r}")
    first, last, step = (int(number) for number in numbers.groups(default="1"))
    return range(first, last + 1, step)
