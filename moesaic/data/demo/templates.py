"""Conversations from templates of a question and an answer, read from a data file.

Knows nothing about their content or splits. The wordings are in the grammar of `phrases`.
"""

from random import Random

from moesaic.data.demo.phrases import filled, worded
from moesaic.data.demo.shapes import Exchange, Groups
from moesaic.data.demo.tables import members, table


def drawn(name: str, count: int, rng: Random) -> Groups:
    """Exchanges of all templates of a file in turn, by template of the question."""
    written = table(name)
    found: Groups = {}
    for number in range(count):
        template = written["exchanges"][number % len(written["exchanges"])]
        slots: dict[str, str | int] = {}
        for names, pool in written["pools"].items():
            slots |= zip(names.split(), rng.sample(members(pool), len(names.split())), strict=True)
        ask = rng.choice(template["asks"])
        exchange = Exchange(*(filled(worded(text, rng), slots) for text in (ask, template["answer"])))
        found.setdefault(ask, []).append([exchange])
    return found
