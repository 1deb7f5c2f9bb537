"""Compares two tokenizers: their ids, and everything else that decides the ids of a text.

Knows nothing about models.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from moesaic.errors import clipped
from moesaic.tokenizer.probe import PROBES
from moesaic.tokenizer.tokenizer import Tokenizer

SHOWN = 10
MARKS = 50
"""Special tokens that are spelled in probes."""

PLAIN = [text for text in PROBES if text == text.lstrip()]
SPACED = [text for text in PROBES if text != text.lstrip()]

SPACES = "leading spaces"
SUBSTANCE, FORM = ("tokens", "merges", "scores"), ("model", "steps")
"""Differences that are of meaning, and those that may be of form alone."""


@dataclass(frozen=True)
class Difference:
    """A kind of difference, its number of cases, and the first of them: (key, one's value, the other's value).

    `clashes`: the cases in which both have a value.
    """

    what: str
    count: int
    first: tuple[tuple[str, str, str], ...]
    clashes: int

    def __str__(self) -> str:
        shown = "; ".join(f"{where}: {one} / {other}" for where, one, other in self.first)
        more = f" and {self.count - len(self.first)} more" if self.count > len(self.first) else ""
        return f"{self.what}: {self.count} ({shown}{more})"


def compare(one: Tokenizer, other: Tokenizer) -> list[Difference]:
    """The differences between two tokenizers; none where every text has the same ids in both, and every id one text.

    Programs write the same steps in several forms: where vocabulary, merges and scores are equal, and the ids of probes
    too, other forms are no difference. Probes that begin with white space are compared by themselves, as SPACES: the
    steps that transformers writes anew treat only these otherwise.
    """
    mine, yours = _described(one), _described(other)
    found = [difference for what in mine if (difference := _difference(what, mine[what], yours[what]))]
    if {difference.what for difference in found} & {*SUBSTANCE} or _effect(one, PLAIN) != _effect(other, PLAIN):
        return found
    mine, yours = _effect(one, SPACED), _effect(other, SPACED)
    spaced = _difference(SPACES, mine, yours)
    return [difference for difference in [*found, spaced] if difference and difference.what not in FORM]


def _effect(tokenizer: Tokenizer, texts: Iterable[str]) -> dict[Any, Any]:
    """The ids of every text, alone and within a text, also with a special token before it, and what they decode to."""
    marks = [token.content for token in tokenizer.inner.get_added_tokens_decoder().values()][:MARKS]
    found: dict[Any, Any] = {}
    for text in (*texts, *(f"{mark}{text}" for mark in marks for text in texts if len(text) < MARKS)):
        ids = tokenizer.encode(text)
        found[repr(text)] = ids, tokenizer.follow(text), tokenizer.decode(ids)
    return found


def _described(tokenizer: Tokenizer) -> dict[str, dict[Any, Any]]:
    """All that decides the ids of a text: tokens by id, merges and scores by rank, special ids by role, and so on."""
    found, special = json.loads(tokenizer.inner.to_str()), tokenizer.special
    model = found["model"]
    scores = model["vocab"] if isinstance(model["vocab"], list) else []  # only the pieces of a Unigram have scores
    ids = {"bos": special.bos, "eos": special.ends, "pad": special.pad, "unk": special.unk, "start": special.start}
    return {
        "tokens": {str(id): text for text, id in tokenizer.inner.get_vocab().items()},
        "merges": dict(enumerate(model.get("merges") or [])),
        "scores": dict(enumerate(map(str, scores))),
        "added tokens": {str(token["id"]): token for token in found["added_tokens"]},
        "special ids": ids,
        "model": {key: value for key, value in model.items() if key not in ("vocab", "merges")},
        "steps": {step: found[step] for step in ("normalizer", "pre_tokenizer", "post_processor", "decoder")},
        "templates": {"chat template": tokenizer.template and tokenizer.template.source},
    }


def _difference(what: str, one: dict[Any, Any], other: dict[Any, Any]) -> Difference | None:
    missing = "(none)"
    keys = sorted(one.keys() | other.keys(), key=lambda key: (len(str(key)), str(key)))  # ids by their size
    pairs = ((key, one.get(key, missing), other.get(key, missing)) for key in keys)
    differing = [(key, x, y) for key, x, y in pairs if x != y]
    first = tuple((str(key), clipped(x), clipped(y)) for key, x, y in differing[:SHOWN])
    clashes = sum(key in one and key in other for key, _, _ in differing)
    return Difference(what, len(differing), first, clashes) if differing else None
