"""The texts that the base, every expert and the mixture write after test prompts, scored against the rows' answers.

Greedy, so that one mixture always writes the same texts. Knows nothing about how any score is computed.
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from moesaic.data.batches import Tokens
from moesaic.data.rows import Example
from moesaic.data.splits import take
from moesaic.errors import DataError
from moesaic.evaluate.texts import Wanted, score_texts
from moesaic.generate.engine import Engine
from moesaic.generate.request import BASE
from moesaic.sections.texts import Texts
from moesaic.tasks.task import Task

Written = dict[str, dict[str, dict[str, float]]]
"""Domain -> contender -> score -> value."""

TIMED = {"base": BASE, "router": None}
"""The contenders whose answers are timed -> the expert that answers."""
TIMED_ROWS = 20
"""Prompts of all domains that are answered once more, each alone, to time the answers."""


@dataclass(frozen=True)
class Question:
    """A prompt as in training, cut to `train.length`; the room for tokens after it; and the wanted answers."""

    ids: list[int]
    room: int
    wanted: Wanted


def written(task: Task[Tokens], engine: Engine) -> dict[str, Written]:
    """Score generated texts, under `written`; nothing where the recipe does not ask for any.

    Contenders: `base`, `expert:NAME`, and `router`, the mixture. A row without a prompt, or whose prompt fills the
    context, is left out; `rows` counts the others. Only domains whose rows have wrong answers have scores of truth.
    Raises DataError where the recipe asks for these and no domain has such rows.
    """
    wanted = task.recipe.evaluate.generate
    if wanted is None:
        return {}
    names = {"base": BASE, **{f"expert:{name}": name for name in task.recipe.experts}, "router": None}
    found: Written = {}
    for domain, questions in asked(task, wanted).items():
        found[domain] = {
            contender: scored(answers(task, engine, questions, wanted, name), questions, wanted)
            for contender, name in names.items()
        }
    if "truth" in wanted.metrics and not any("truth" in scores["base"] for scores in found.values()):
        hint = "leave truth out of evaluate.generate.metrics"
        raise DataError(
            "no test row has wrong answers, which scores of truth need", field="incorrect_answers", hint=hint
        )
    return {"written": found}


def asked(task: Task[Tokens], wanted: Texts) -> dict[str, list[Question]]:
    """The questions of every domain that has prompts."""
    found = {}
    for domain, rows in task.materials.domains.items():
        given = (question(task, example) for example in take(rows.test, wanted.limit) if example.prompt)
        found[domain] = [one for one in given if one.room > 0]
    return {domain: some for domain, some in found.items() if some}


def latencies(task: Task[Tokens], engine: Engine) -> dict[str, dict[str, Any]]:
    """Seconds of an answer to a prompt alone, under `latency`: median, 5th and 95th percentile, and of how many tokens.

    Nothing where the recipe asks for no texts. The first answer of each contender, which warms up, is not counted.
    """
    wanted = task.recipe.evaluate.generate
    questions = [one for some in zip(*asked(task, wanted).values(), strict=False) for one in some] if wanted else []
    if wanted is None or not questions:
        return {}
    found = {}
    for contender, expert in TIMED.items():
        seconds, tokens = list[float](), list[int]()
        for one in (questions[0], *questions[:TIMED_ROWS]):
            started = time.perf_counter()
            ((made,),) = engine.generate([one.ids], max_new_tokens=min(wanted.max_new_tokens, one.room), expert=expert)
            seconds.append(time.perf_counter() - started)
            tokens.append(len(made.ids))
        low, median, high = np.quantile(seconds[1:], (0.05, 0.5, 0.95)).round(6).tolist()
        figures = {"rows": len(seconds) - 1, "median": median, "p5": low, "p95": high}
        found[contender] = figures | {"tokens": float(np.mean(tokens[1:]))}
    return {"latency": found}


def question(task: Task[Tokens], example: Example) -> Question:
    (row,) = task.encoded([example], task.recipe.train.length, "")
    correct = tuple(dict.fromkeys((example.response, *example.correct)))
    room = task.body.config.context - row.prompt
    return Question(row.ids[: row.prompt], room, Wanted(correct, example.incorrect, example.prompt))


def answers(
    task: Task[Tokens], engine: Engine, questions: list[Question], wanted: Texts, expert: str | None
) -> list[str]:
    """The texts of one contender; all rows of a batch have the room that its longest prompt leaves."""
    size, texts = task.recipe.evaluate.batch, []
    for start in range(0, len(questions), size):
        batch = questions[start : start + size]
        new = min(wanted.max_new_tokens, *(one.room for one in batch))
        made = engine.generate([one.ids for one in batch], max_new_tokens=new, expert=expert)
        texts += [generation.text.strip() for (generation,) in made]
    return texts


def scored(texts: list[str], questions: list[Question], wanted: Texts) -> dict[str, float]:
    rows = [one.wanted for one in questions]
    lies = any(row.incorrect for row in rows)
    metrics = [metric for metric in wanted.metrics if metric != "truth" or lies]
    return {"rows": float(len(texts)), **score_texts(texts, rows, metrics)}
