"""The texts that the base, every expert and the mixture write after test prompts, scored against the rows' answers.

Greedy, so that the same mixture writes the same. Knows nothing about how any score is computed.
"""

from dataclasses import dataclass

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


@dataclass(frozen=True)
class Question:
    """A prompt as it is in training, cut to `train.length`; how many tokens may follow it; and what should."""

    ids: list[int]
    room: int
    wanted: Wanted


def written(task: Task[Tokens], engine: Engine) -> dict[str, Written]:
    """Under `written`, what the recipe asks for; nothing where it does not ask.

    Contenders: `base`, `expert:NAME`, and `router`, the mixture. A row without a prompt, or whose prompt fills the
    context, is left out; `rows` says how many were not. Scores of truth are of domains whose rows have wrong answers.
    Raises DataError where they are asked for and none has.
    """
    wanted = task.recipe.evaluate.generate
    if wanted is None:
        return {}
    names = {"base": BASE, **{f"expert:{name}": name for name in task.recipe.experts}, "router": None}
    told: Written = {}
    for domain, rows in task.materials.domains.items():
        given = (question(task, example) for example in take(rows.test, wanted.limit) if example.prompt)
        questions = [one for one in given if one.room > 0]
        if questions:
            told[domain] = {
                contender: scored(answers(task, engine, questions, wanted, name), questions, wanted)
                for contender, name in names.items()
            }
    if "truth" in wanted.metrics and not any("truth" in scores["base"] for scores in told.values()):
        hint = "leave truth out of evaluate.generate.metrics"
        raise DataError("no test row has wrong answers to tell truth by", field="incorrect_answers", hint=hint)
    return {"written": told}


def question(task: Task[Tokens], example: Example) -> Question:
    """A test row as it is put to a contender."""
    (row,) = task.encoded([example], task.recipe.train.length, "")
    correct = tuple(dict.fromkeys((example.response, *example.correct)))
    room = task.body.config.context - row.prompt
    return Question(row.ids[: row.prompt], room, Wanted(correct, example.incorrect))


def answers(
    task: Task[Tokens], engine: Engine, questions: list[Question], wanted: Texts, expert: str | None
) -> list[str]:
    """What one contender writes; rows of a batch have as much room as the longest prompt of it leaves."""
    size, texts = task.recipe.evaluate.batch, []
    for start in range(0, len(questions), size):
        batch = questions[start : start + size]
        new = min(wanted.max_new_tokens, *(one.room for one in batch))
        made = engine.generate([one.ids for one in batch], max_new_tokens=new, expert=expert)
        texts += [generation.text.strip() for (generation,) in made]
    return texts


def scored(texts: list[str], questions: list[Question], wanted: Texts) -> dict[str, float]:
    """The scores of one contender in one domain."""
    rows = [one.wanted for one in questions]
    lies = any(row.incorrect for row in rows)
    metrics = [metric for metric in wanted.metrics if metric != "truth" or lies]
    return {"rows": float(len(texts)), **score_texts(texts, rows, metrics)}
