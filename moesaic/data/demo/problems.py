"""The structures of arithmetic problems, read from `problems.yaml`.

Knows no numbers and names: `math` draws them. The wordings are in the grammar of `phrases`.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from moesaic.data.demo.tables import members, table


class Step(NamedTuple):
    """A calculation, `result = left operator right`, and its sentence, with `{eq}` for the equation."""

    result: str
    left: str
    operator: str
    right: str
    saying: str

    @property
    def equation(self) -> str:
        return f"{{{self.left}}} {self.operator} {{{self.right}}} = {{{self.result}}}"


class Problem(NamedTuple):
    """A structure: ranges of its numbers, several questions, the steps to the answer, and how often it is drawn."""

    numbers: dict[str, Sequence[int]]
    questions: list[str]
    steps: list[Step]
    share: int


class Problems(NamedTuple):
    """All problems; each key of `pools` names slots that get different members of the pool."""

    pools: dict[str, Sequence[str]]
    problems: list[Problem]


@cache
def read_problems() -> Problems:
    written = table("problems.yaml")
    return Problems(written["pools"], [problem(**fields) for fields in written["problems"]])


def problem(numbers: Mapping[str, Any], questions: list[str], steps: Mapping[str, str], share: int = 1) -> Problem:
    pools = {name: members(pool) for name, pool in numbers.items()}
    return Problem(pools, questions, [step(calculation, saying) for calculation, saying in steps.items()], share)


def step(calculation: str, saying: str) -> Step:
    """Parse a calculation such as `cost = price * count`."""
    result, _, left, operator, right = calculation.split()
    return Step(result, left, operator, right, saying)
