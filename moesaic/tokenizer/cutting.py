"""How byte-level BPEs cut texts before merging, by the names that llama.cpp has for it, and what it cannot do.

Knows nothing about files.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CUT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
CUT += r"|\s*[\r\n]+|\s+(?!\S)|\s+"
"""Splits texts before merging (after OpenAI's cl100k); Llama 3 keeps up to three digits together."""
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
DIGIT, OWN = r"\p{N}", "ByteLevel"
"""The expression that cuts off every digit, and the word for the expression of GPT-2, which ByteLevel has itself."""

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Cut:
    """A way of cutting: its expressions, one after another. `whole`: a piece that is a token is not merged. `composed`:
    texts are brought to the normal form NFC.
    """

    name: str
    expressions: tuple[str, ...]
    whole: bool = False
    composed: bool = False

    @property
    def pre_tokenizer(self) -> dict[str, Any]:
        splits = [split(expression) for expression in self.expressions if expression != OWN]
        return {"type": "Sequence", "pretokenizers": [*splits, {**BYTES, "use_regex": OWN in self.expressions}]}

    @property
    def normalizer(self) -> dict[str, str] | None:
        return {"type": "NFC"} if self.composed else None


CUTS = (
    Cut("gpt-2", (OWN,)),
    Cut("smollm", (DIGIT, OWN)),
    Cut("llama-bpe", (CUT.format(digits="{1,3}"),), whole=True),
    Cut("qwen2", (CUT.format(digits=""),), composed=True),
)


def split(expression: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}


def steps(whole: Json, part: str) -> list[Json]:
    """The steps of a part of a tokenizer.json."""
    found = whole.get(part)
    return [] if found is None else found.get("normalizers") or found.get("pretokenizers") or [found]


def cut_of(whole: Json) -> Cut | None:
    """The way in which a tokenizer.json cuts texts; None for one that is not listed."""
    found = tuple(expression for step in steps(whole, "pre_tokenizer") for expression in _expressions(step))
    return next((cut for cut in CUTS if cut.expressions == found), None)


def _expressions(step: Json) -> tuple[str, ...]:
    match step:
        case {"type": "Digits", "individual_digits": True}:
            return (DIGIT,)
        case {"type": "Split", "pattern": {"Regex": str(expression)}, "behavior": "Isolated"}:
            return (expression,)
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return (OWN,) if step.get("use_regex", True) else ()
        case _:
            return (str(step.get("type")),)


PREPENDED, SPACED = {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
UNCUT: tuple[list[Json], ...] = (
    [],
    [{"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}],
)
"""Steps of a SentencePiece: spaces as a letter, one in front; and cuts that never happen, as no space is left."""


def unlike(whole: Json) -> str | None:
    """What in a tokenizer.json llama.cpp would do otherwise; None where it reads texts as this tokenizer does."""
    model = whole["model"]
    if model["type"] != "BPE" or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return f"a model of type {model['type']}, or one with prefixes of pieces"
    before = steps(whole, "normalizer")
    if model.get("byte_fallback"):
        known = before in ([SPACED], [PREPENDED, SPACED]) and steps(whole, "pre_tokenizer") in UNCUT
        return None if known else "another normalizer or pre_tokenizer than that of a SentencePiece"
    cut = cut_of(whole)
    if cut is None:
        return f"another pre_tokenizer than those of {', '.join(one.name for one in CUTS)}"
    if before not in ([], [cut.normalizer]) or bool(model.get("ignore_merges")) != cut.whole:
        return f"another normalizer, or other merges, than those of {cut.name}"
    return None
