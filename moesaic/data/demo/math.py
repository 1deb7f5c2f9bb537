"""The domain of arithmetic: word problems drawn from `problems`, with the steps of each solution.

Knows nothing about splits; its groups are wordings of questions, without names and numbers.
"""

from collections.abc import Callable
from operator import add, floordiv, mul, sub
from random import Random

from moesaic.data.demo.phrases import filled, worded
from moesaic.data.demo.problems import Problem, read_problems

DRAWN = 2200  # rows before duplicates are dropped and splits are made

OPERATORS: dict[str, Callable[[int, int], int]] = {"+": add, "-": sub, "*": mul, "/": floordiv}


def groups(seed: int) -> dict[str, list[dict]]:
    """Rows of all problems in turn, by wording of the question; a response ends in a line `Answer: 42`."""
    rng = Random(f"{seed} math")
    problems = read_problems().problems
    found: dict[str, list[dict]] = {}
    for number in range(DRAWN):
        problem = problems[number % len(problems)]
        question = worded(rng.choice(problem.questions), rng)
        found.setdefault(question, []).append(solved(problem, question, rng))
    return found


def solved(problem: Problem, question: str, rng: Random) -> dict:
    slots: dict[str, str | int] = {}
    for names, pool in read_problems().pools.items():
        slots |= zip(names.split(), rng.sample(pool, len(names.split())), strict=True)
    slots |= computed(problem, rng)
    lines = [filled(worded(step.saying, rng), slots | {"eq": filled(step.equation, slots)}) for step in problem.steps]
    answer = slots[problem.steps[-1].result]
    return {"prompt": filled(question, slots), "response": "\n".join([*lines, f"Answer: {answer}"])}


def computed(problem: Problem, rng: Random) -> dict[str, int]:
    """Draw numbers until every result of a step is whole and at least two."""
    while True:
        values = {name: rng.choice(numbers) for name, numbers in problem.numbers.items()}
        for step in problem.steps:
            left, right = (int(values.get(word, word)) for word in (step.left, step.right))
            if step.operator == "/" and left % right:
                break
            values[step.result] = OPERATORS[step.operator](left, right)
            if values[step.result] < 2:
                break
        else:
            return values
