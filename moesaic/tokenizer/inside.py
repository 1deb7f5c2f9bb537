"""A tokenizer for texts that continue others: without the space that some tokenizers put before a text.

Knows nothing about special ids.
"""

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tokenizers


def inside(inner: "tokenizers.Tokenizer") -> "tokenizers.Tokenizer":
    """The tokenizer without the space that it puts before a text; `inner` itself where it puts none."""
    from tokenizers import Tokenizer as Inner

    found = json.loads(inner.to_str())
    if not unprefixed(found):
        return inner
    made = Inner.from_str(json.dumps(found))
    made.encode_special_tokens = True
    return made


def unprefixed(found: dict[str, Any]) -> bool:
    """Remove the steps of a tokenizer.json that put a space before a text; False where there are none."""
    steps, cuts = found.get("normalizer"), found.get("pre_tokenizer")
    normal = steps["normalizers"] if steps and steps["type"] == "Sequence" else [steps]
    kept = [step for step in normal if step and step["type"] != "Prepend"]
    changed = len(kept) < len([step for step in normal if step])
    if changed:
        found["normalizer"] = {"type": "Sequence", "normalizers": kept} if kept else None
    for cut in cuts["pretokenizers"] if cuts and cuts["type"] == "Sequence" else [cuts]:
        if cut and cut["type"] == "Metaspace" and cut.get("prepend_scheme", "always") != "never":
            cut["prepend_scheme"], changed = "never", True
        if cut and cut["type"] == "ByteLevel" and cut["add_prefix_space"]:
            cut["add_prefix_space"], changed = False, True
    return changed
