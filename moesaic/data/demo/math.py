"""The domain of arithmetic: sums and differences of small numbers, bare, as short questions and in stories.

Knows nothing about splits; its groups are the templates of questions in `problems`.
"""

import re
from itertools import cycle
from random import Random

from moesaic.data.demo.phrases import SLOT, raw, worded
from moesaic.data.demo.shapes import Exchange, Groups
from moesaic.data.demo.tables import table

DRAWN = {"signs": 330, "short": 1200, "stories": 500}  # exchanges of each sort before splits are made
TEN = 10  # the largest sum, and the largest number that something is taken from
FACTS = {
    "+": [(a, total - a, total) for total in range(2, TEN + 1) for a in range(1, total)],
    "-": [(total, a, total - a) for total in range(2, TEN + 1) for a in range(1, total)],
}
WORD = re.compile(r"[a-z]+")


def groups(seed: int) -> Groups:
    """Exchanges by template of the question, whose answers are equations; templates of signs alone are one group.

    Each sort of question goes through all facts again and again, so that no fact is missing.
    """
    rng = Random(f"{seed} math")
    written = table("problems.yaml")
    found: Groups = {}
    for sort, count in DRAWN.items():
        decks = {sign: cycle(rng.sample(facts, len(facts))) for sign, facts in FACTS.items()}
        for sign, _ in zip(cycle(FACTS), range(count), strict=False):
            a, b, result = next(decks[sign])
            slots: dict[str, str | int] = {"a": a, "b": b}
            for names, pool in written["pools"].items():
                slots |= zip(names.split(), rng.sample(pool, len(names.split())), strict=True)
            template = rng.choice(written[sort][sign])
            exchange = Exchange(raw(worded(template, rng), slots), f"{a} {sign} {b} = {result}")
            found.setdefault(lettered(template), []).append([exchange])
    return found


def lettered(template: str) -> str:
    """The template without slots and signs, which a search of duplicates may not see."""
    return " ".join(WORD.findall(SLOT.sub("", template).casefold()))
