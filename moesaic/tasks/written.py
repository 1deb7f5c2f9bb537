"""The texts that the base, every expert and the mixture write after test prompts, scored against the rows' answers.

Greedy, so that one mixture always writes the same texts. Knows nothing about how any score is computed.
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
    for domain, rows in task.materials.domains.items():
        given = (question(task, example) for example in take(rows.test, wanted.limit) if example.prompt)
        questions = [one for one in given if one.room > 0]
        if questions:
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


def question(task: Task[Tokens], example: Example) -> Question:
    (row,) = task.encoded([example], task.recipe.train.length, "")
    correct = tuple(dict.fromkeys((example.response, *example.correct)))
    room = task.body.config.context - row.prompt
    return Question(row.ids[: row.prompt], room, Wanted(correct, example.incorrect))


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
