"""Settings of tokenizer_config.json by which a class of transformers decides in place of a tokenizer.json.

Knows nothing about files or special ids.
"""

import json
from collections.abc import Iterable
from typing import Any

from moesaic.tokenizer.inside import unprefixed

PREFIXING = ("GPT2Tokenizer", "Qwen2Tokenizer", "RobertaTokenizer")
SPACED, WORDED = "LlamaTokenizer", "BertTokenizer"
PREFIX = {"add_prefix_space": "add_prefix_space"}
NORMAL = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}
"""Settings of a BERT -> keys of its normalizer."""


def by_class(data: bytes, config: dict[str, Any], family: str | None) -> tuple[bytes, list[str]]:
    """A tokenizer.json as its class reads it, and what its settings change. `family`: the `model_type`, if known."""
    maker, asked = str(config.get("tokenizer_class", "")).removesuffix("Fast"), config.get("add_prefix_space")
    found, changed = json.loads(data), list[str]()
    if maker in PREFIXING and isinstance(asked, bool):
        changed = _changed(_steps(found, "pre_tokenizer", "ByteLevel"), config, PREFIX)
    if maker == WORDED:
        changed = _changed(_steps(found, "normalizer", "BertNormalizer"), config, NORMAL)
    spaced = maker == SPACED and family in (None, "llama") and found["model"].get("byte_fallback")
    if spaced and asked is False and unprefixed(found):
        changed = ["add_prefix_space is False, and True"]
        steps = (found.get("decoder") or {}).get("decoders", [])
        steps[:] = [step for step in steps if step["type"] != "Strip"]  # which takes the space away again
    return (json.dumps(found).encode() if changed else data), changed


def _steps(found: dict[str, Any], part: str, kind: str) -> list[dict[str, Any]]:
    """The steps of one kind in a part of a tokenizer.json."""
    whole = found.get(part) or {}
    steps = whole.get("pretokenizers") or whole.get("normalizers") or [whole]
    return [step for step in steps if step.get("type") == kind]


def _changed(steps: Iterable[dict[str, Any]], config: dict[str, Any], names: dict[str, str]) -> list[str]:
    """Give the steps the values that a configuration states, and tell those that differ."""
    changed = []
    for step in steps:
        for key, own in names.items():
            if key in config and step.get(own) != config[key]:
                changed.append(f"{key} is {config[key]}, and {step.get(own)}")
                step[own] = config[key]
    return changed
