"""The domain of arithmetic: sums and word problems of `problems`, with the steps of each solution.

Knows nothing about splits; its groups are the templates of questions.
"""

import re
from collections.abc import Callable
from itertools import product
from operator import add, sub
from random import Random

from moesaic.data.demo.phrases import SLOT, filled, raw, worded
from moesaic.data.demo.problems import Problem, read_problems
from moesaic.data.demo.shapes import Exchange, Groups

DRAWN = 1900  # exchanges before splits are made

OPERATORS: dict[str, Callable[[int, int], int]] = {"+": add, "-": sub}
DIGITS = range(10)
WORD = re.compile(r"[a-z]+")


def groups(seed: int) -> Groups:
    """Exchanges of all problems in turn, by template of the question; templates of signs alone are one group."""
    rng = Random(f"{seed} math")
    problems = [problem for problem in read_problems().problems for _ in range(problem.share)]
    decks = {id(problem): shuffled(possible(problem), rng) for problem in problems}
    found: Groups = {}
    for number in range(DRAWN):
        problem = problems[number % len(problems)]
        deck = decks[id(problem)]
        deck.append(values := deck.pop(0))
        template = rng.choice(problem.questions)
        found.setdefault(lettered(template), []).append([solved(problem, template, values, rng)])
    return found


def solved(problem: Problem, template: str, values: dict[str, int], rng: Random) -> Exchange:
    slots: dict[str, str | int] = dict(values)
    for names, pool in read_problems().pools.items():
        slots |= zip(names.split(), rng.sample(pool, len(names.split())), strict=True)
    lines = [filled(worded(step.saying, rng), slots | {"eq": filled(step.equation, slots)}) for step in problem.steps]
    return Exchange(raw(worded(template, rng), slots), "\n".join(lines))


def possible(problem: Problem) -> list[dict[str, int]]:
    """All numbers with which every step is a sum of two digits, or takes a digit from one and leaves a digit."""
    found = []
    for drawn in product(*problem.numbers.values()):
        values = dict(zip(problem.numbers, drawn, strict=True))
        for step in problem.steps:
            left, right = values[step.left], values[step.right]
            values[step.result] = OPERATORS[step.operator](left, right)
            if right not in DIGITS or (left if step.operator == "+" else values[step.result]) not in DIGITS:
                break
        else:
            found.append(values)
    return found


def shuffled(values: list[dict[str, int]], rng: Random) -> list[dict[str, int]]:
    return rng.sample(values, len(values))


def lettered(template: str) -> str:
    """The template without slots and signs, which a search of duplicates may not see."""
    return " ".join(WORD.findall(SLOT.sub("", template).casefold()))
