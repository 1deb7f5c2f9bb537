"""The prompts of a run: those of its experts, the same in other forms, and neutral ones, as rows that a router reads.

Knows nothing about routers.
"""

import sys
from collections.abc import Sequence

from moesaic.data.batches import Tokens
from moesaic.data.forms import FORMS, OTHERS, Draw, Prompt, drawn, prompt_of
from moesaic.data.neutral import neutral
from moesaic.data.rows import Example
from moesaic.data.splits import take
from moesaic.errors import DataError
from moesaic.tasks import Run

SPLITS = ("train", "validation")
"""What routers learn from, and what judges them meanwhile."""


def prompts_of(run: Run, expert: str, split: str) -> Sequence[Example]:
    """The texts whose prompts a router learns to give an expert: its data, or the examples of one trained elsewhere.

    One in five examples is held out.
    """
    spec = run.recipe.experts[expert]
    if spec.data:
        return getattr(run.materials.domains[expert], split)
    given = take(run.materials.texts(spec.examples or []), sys.maxsize)
    if len(given) < 2:
        field, hint = f"experts.{expert}.examples", "one to learn from and one to hold out, better ten or more"
        raise DataError("too few examples", field=field, expected="at least 2", got=len(given), hint=hint)
    held_out = max(1, len(given) // 5)
    return given[:held_out] if split == "validation" else given[held_out:]


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


def nobodys(run: Run, split: str) -> dict[str, list[Example]]:
    """The neutral prompts of a split by kind, without those that are also a prompt of an expert."""
    experts = run.recipe.experts
    own = {plainly(one.prompt) for name in experts for part in SPLITS for one in prompts_of(run, name, part)}
    return {kind: [one for one in rows if plainly(one.prompt) not in own] for kind, rows in neutral(split).items()}


def plainly(text: str) -> str:
    """A text without what its spelling adds: case, and the kind and number of spaces."""
    return " ".join(text.casefold().split())


def neutral_prompts(run: Run, split: str, most: int) -> list[Example]:
    """At most so many neutral prompts, by hash."""
    every = [example for rows in nobodys(run, split).values() for example in rows]
    kept = {example.group for example in take(every, most)}
    return [example for example in every if example.group in kept]


def neutral_rows(run: Run, split: str, most: int) -> list[Tokens]:
    """Neutral prompts as they are, then the same in as many other forms as those of experts."""
    examples = neutral_prompts(run, split, most)
    names = ["as_is"] * len(examples) + [drawn(example, others) for others in OTHERS for example in examples]
    return in_forms(run, examples * (1 + len(OTHERS)), names, judged=split == "test")
