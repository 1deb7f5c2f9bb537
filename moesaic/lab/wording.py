"""The words of a study: one sentence for each comparison, one for the whole.

Knows nothing about where the numbers come from.
"""

from collections.abc import Mapping, Sequence

from moesaic.lab.matching import MATCHINGS, Found
from moesaic.lab.paired import Comparison


def outcome(found: Found) -> str:
    return found.comparison.outcome if found.comparison else "no verdict"


def sentence(matching: str, against: str, found: Mapping[str, Found]) -> str:
    """One matching in a sentence: who is better, worse or undecided, and the difference that would have shown."""
    words = {"better": "better than", "worse": "worse than", "undecided": "not clearly different from"}
    groups = {word: [arm for arm, one in found.items() if outcome(one) == key] for key, word in words.items()}
    told = [f"{listed(arms)} {verb(arms)} {word} {against}" for word, arms in groups.items() if arms]
    told = [f"{one} (undecided)" if "clearly" in one else one for one in told]
    silent = [arm for arm, one in found.items() if not one.comparison]
    told += [f"there is no verdict on {listed(silent)}"] if silent else []
    comparisons = [one.comparison for one in found.values() if one.comparison]
    return f"At equal {MATCHINGS[matching].title}, {'; '.join(told)}{reach(comparisons)}."


def reach(comparisons: Sequence[Comparison]) -> str:
    """The differences that a study could have seen, as the end of a sentence."""
    if not comparisons:
        return ""
    low, high = (f"{size(one.smallest for one in comparisons):.4f}" for size in (min, max))
    span = low if low == high else f"{low} to {high}"
    return f"; the smallest difference that this study could have seen is {span} bits per byte"


def listed(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def verb(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"
