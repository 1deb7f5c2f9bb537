"""The grammar of the generated domains: alternative wordings, and slots to fill.

Knows nothing about the content of sentences.
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
    """Choose a wording of every "[this|that|]" in `template`, innermost first; {slots} stay open."""
    while CHOICE.search(template):
        template = CHOICE.sub(lambda match: rng.choice(match[1].split("|")), template)
    return GAP.sub("", template)


def raw(skeleton: str, slots: Mapping[str, Any]) -> str:
    """Fill the slots of a text that has no sentences."""
    return SLOT.sub(lambda match: str(slots[match[1]]), skeleton)


def filled(skeleton: str, slots: Mapping[str, Any]) -> str:
    """Fill the slots of sentences, each of which begins with a capital after a full stop."""
    return SENTENCE_START.sub(lambda match: match[1] + match[2].upper(), raw(skeleton, slots))


def open_slots(texts: Iterable[str]) -> set[str]:
    return {name for text in texts for name in SLOT.findall(text)}
