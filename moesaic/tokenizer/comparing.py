"""Are two tokenizers the same one? Where not, which ids mean something else, and what else differs.

Knows nothing about models; it compares what decides the ids of a text.
"""

import json
from dataclasses import dataclass
from typing import Any

from moesaic.errors import clipped
from moesaic.tokenizer.tokenizer import Tokenizer

SHOWN = 10


@dataclass(frozen=True)
class Difference:
    """What differs, in how many places, and the first of them: (where, in the one, in the other).

    `clashes`: the places where both have something; in the others, one of the two has nothing.
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
    """How two tokenizers differ; nothing where every text has the same ids in both, and every id the same text.

    Tokens by their ids, merges by their rank, special ids by their role, the steps before and after, the template.
    """
    a, b = (json.loads(tokenizer.inner.to_str()) for tokenizer in (one, other))
    vocabularies = [{str(id): text for text, id in t.inner.get_vocab().items()} for t in (one, other)]
    merges = [dict(enumerate(_merges(found["model"]))) for found in (a, b)]
    roles = [
        {"bos": t.special.bos, "eos": t.special.ends, "pad": t.special.pad, "unk": t.special.unk} for t in (one, other)
    ]
    starts = [{"start": t.special.start} for t in (one, other)]
    scores = [dict(enumerate(map(str, _scores(found["model"])))) for found in (a, b)]
    models = [{k: v for k, v in found["model"].items() if k not in ("vocab", "merges")} for found in (a, b)]
    added = [{str(token["id"]): token for token in found["added_tokens"]} for found in (a, b)]
    steps = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
    rest = [{step: found[step] for step in steps} for found in (a, b)]
    texts = [{"chat template": t.template and t.template.source} for t in (one, other)]
    found: dict[str, list[dict[Any, Any]]] = {
        "tokens": vocabularies,
        "merges": merges,
        "scores": scores,
        "added tokens": added,
        "special ids": [{**role, **start} for role, start in zip(roles, starts, strict=True)],
        "model": models,
        "steps": rest,
        "templates": texts,
    }
    differences = (_difference(what, mine, yours) for what, (mine, yours) in found.items())
    return [difference for difference in differences if difference]


def _difference(what: str, one: dict[Any, Any], other: dict[Any, Any]) -> Difference | None:
    missing = "(none)"
    keys = sorted(one.keys() | other.keys(), key=lambda key: (len(str(key)), str(key)))  # ids by their size
    pairs = ((key, one.get(key, missing), other.get(key, missing)) for key in keys)
    differing = [(key, x, y) for key, x, y in pairs if x != y]
    first = tuple((str(key), clipped(x), clipped(y)) for key, x, y in differing[:SHOWN])
    clashes = sum(key in one and key in other for key, _, _ in differing)
    return Difference(what, len(differing), first, clashes) if differing else None


def _merges(model: dict[str, Any]) -> list[Any]:
    return model.get("merges") or []


def _scores(model: dict[str, Any]) -> list[Any]:
    """Of a Unigram its pieces have scores; other models have none."""
    return model["vocab"] if isinstance(model["vocab"], list) else []
