"""The structures that arithmetic word problems are drawn from, read from `problems.yaml`.

Knows no numbers and no names in particular: `math` draws them. The wordings are in the grammar of `phrases`.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from moesaic.data.demo.tables import members, table


class Step(NamedTuple):
    """One calculation, `result = left operator right`, and the sentence that says it, with `{eq}` for the equation."""

    result: str
    left: str
    operator: str
    right: str
    saying: str

    @property
    def equation(self) -> str:
        """The calculation as it is printed, its numbers still open."""
        left, right = (word if word.isdigit() else f"{{{word}}}" for word in (self.left, self.right))
        return f"{left} {self.operator} {right} = {{{self.result}}}"


class Problem(NamedTuple):
    """One structure of problem: the numbers it may draw, several questions, and the steps, the answer last."""

    numbers: dict[str, Sequence[int]]
    questions: list[str]
    steps: list[Step]


class Problems(NamedTuple):
    """All problems, and the pools of words that every problem may use.

    Each key of `pools` names slots that are filled with different members of the pool.
    """

    pools: dict[str, Sequence[str]]
    problems: list[Problem]


@cache
def read_problems() -> Problems:
    """Read the problems and their pools."""
    written = table("problems.yaml")
    return Problems(written["pools"], [problem(**fields) for fields in written["problems"]])


def problem(numbers: Mapping[str, Any], questions: list[str], steps: Mapping[str, str]) -> Problem:
    """The problem with these fields."""
    pools = {name: members(pool) for name, pool in numbers.items()}
    return Problem(pools, questions, [step(calculation, saying) for calculation, saying in steps.items()])


def step(calculation: str, saying: str) -> Step:
    """The step of a calculation such as `cost = price * count`."""
    result, _, left, operator, right = calculation.split()
    return Step(result, left, operator, right, saying)
