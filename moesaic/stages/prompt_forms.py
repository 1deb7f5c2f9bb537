"""Prompts of a run in other forms, and neutral prompts, as rows whose prompts a router reads.

Knows nothing about routers.
"""

from collections.abc import Sequence

from moesaic.data.batches import Tokens
from moesaic.data.forms import FORMS, OTHERS, Draw, Prompt, drawn, prompt_of
from moesaic.data.neutral import neutral
from moesaic.data.rows import Example
from moesaic.data.splits import take
from moesaic.errors import DataError
from moesaic.tasks import Run


def in_forms(run: Run, examples: Sequence[Example], names: Sequence[str], judged: bool = False) -> list[Tokens]:
    """The prompts of examples, each in the form of this name; `judged`: with wordings that training does not use."""
    whole = run.task.encoded(examples, run.recipe.train.length, "")
    texts = run.task.texts(whole)  # of plain text the beginning is its prompt
    rows = zip(examples, texts, names, strict=True)
    return [in_form(run, prompt_of(one) or text, name, Draw(one.group, judged)) for one, text, name in rows]


def in_form(run: Run, prompt: Prompt, name: str, draw: Draw) -> Tokens:
    """A prompt in one form, at most as long as a training row; as it is where the base's template refuses the form."""
    tokenizer, most = run.models.base.tokenizer, run.recipe.train.length - 1
    try:
        ids = tokenizer.begin(FORMS[name](prompt, draw), raw=FORMS[name].raw)
    except DataError:
        ids = tokenizer.begin(prompt)
    start = list(tokenizer.start)
    kept = ids if len(ids) <= most else [*start, *ids[len(ids) - most + len(start) :]]
    return Tokens([*kept, tokenizer.eos], len(kept), draw.key, len(ids) - len(kept))


def other_forms(run: Run, examples: Sequence[Example], others: Sequence[str]) -> list[Tokens]:
    """The prompts of examples, each in that one of the `others` which is drawn for it."""
    return in_forms(run, examples, [drawn(example, others) for example in examples])


def neutral_prompts(split: str, most: int) -> list[Example]:
    """At most so many neutral prompts, by hash."""
    every = [example for rows in neutral(split).values() for example in rows]
    kept = {example.group for example in take(every, most)}
    return [example for example in every if example.group in kept]


def neutral_rows(run: Run, split: str, most: int) -> list[Tokens]:
    """Neutral prompts as they are, then the same in as many other forms as those of experts."""
    examples = neutral_prompts(split, most)
    names = ["as_is"] * len(examples) + [drawn(example, others) for others in OTHERS for example in examples]
    return in_forms(run, examples * (1 + len(OTHERS)), names, judged=split == "test")
