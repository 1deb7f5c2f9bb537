"""The little grammar in which the generated domains are written: wordings to choose from, and slots to fill.

Knows nothing about what the sentences say, nor about rows.
"""

import re
from collections.abc import Iterable, Mapping
from random import Random
from typing import Any

CHOICE = re.compile(r"\[([^\[\]]*)\]")
SLOT = re.compile(r"\{(\w+)\}")
GAP = re.compile(r"\s+(?=[.,?!]|\s|$)|^\s+")
SENTENCE_START = re.compile(r"(^|[.?!] )([a-z])")


def worded(template: str, rng: Random) -> str:
    """`template` with one wording taken from every "[this|that|]", the innermost first; its {slots} stay open."""
    while CHOICE.search(template):
        template = CHOICE.sub(lambda match: rng.choice(match[1].split("|")), template)
    return GAP.sub("", template)


def filled(skeleton: str, slots: Mapping[str, Any]) -> str:
    """`skeleton` with its slots filled and its sentences begun with capitals."""
    text = SLOT.sub(lambda match: str(slots[match[1]]), skeleton)
    return SENTENCE_START.sub(lambda match: match[1] + match[2].upper(), text)


def open_slots(texts: Iterable[str]) -> set[str]:
    """The names of the slots that `texts` leave open."""
    return {name for text in texts for name in SLOT.findall(text)}
