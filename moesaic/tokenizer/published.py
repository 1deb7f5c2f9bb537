"""Reads published tokenizers: tokenizer.json, vocab.json with merges.txt, tokenizer.model, vocab.txt of a BERT.

Knows nothing about special ids or chat templates.
"""

import json
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesaic.errors import MoesaicWarning, WeightsError
from moesaic.files import read_json
from moesaic.files.regular import read_regular
from moesaic.tokenizer.conversion import from_merges, from_model, from_words
from moesaic.tokenizer.guard import Limits, guarded
from moesaic.tokenizer.probe import require_sound
from moesaic.tokenizer.special import ROLES, spelled

if TYPE_CHECKING:
    import tokenizers

LIMIT = 64 << 20
JSON, VOCABULARY, MERGES, MODEL = "tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model"
WORDS = "vocab.txt"
CONFIG, NAMES, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
FILES = (JSON, VOCABULARY, MERGES, MODEL, WORDS, CONFIG, NAMES, ADDED, "generation_config.json", "chat_template.jinja")
"""All files of a tokenizer; a folder need not have all."""

CONVERSION = Limits(20, 2048)  # a vocabulary of 262,144 pieces takes 6 seconds


def read_inner(folder: Path, config: dict[str, Any]) -> "tokenizers.Tokenizer":
    """Read and probe the tokenizer of a folder, with the tokens added in other files; it neither truncates nor pads.

    `config` is its tokenizer_config.json. WeightsError names the file that is missing, unknown, damaged or hostile.
    """
    from tokenizers import Tokenizer as Inner

    data, path = _as_json(folder, config)
    lost = require_sound(data, path)
    if lost:
        text = f"{path}: the tokenizer silently drops some characters, such as {' '.join(lost)}"
        warnings.warn(text, MoesaicWarning, stacklevel=2)
    inner = Inner.from_buffer(_prefixed(data, config, folder))
    inner.no_truncation()
    inner.no_padding()
    _add(inner, folder, config)
    return inner


def _as_json(folder: Path, config: dict[str, Any]) -> tuple[bytes, Path]:
    """The bytes of a tokenizer.json, converted where necessary, and the file that they come from."""
    if (folder / JSON).is_file():
        return _bytes(folder / JSON), folder / JSON
    if (folder / VOCABULARY).is_file() and (folder / MERGES).is_file():
        path, work = folder / MERGES, from_merges
        maker = str(config.get("tokenizer_class", ""))
        parts = [maker.encode(), _bytes(folder / VOCABULARY), _bytes(folder / MERGES)]
    elif (folder / MODEL).is_file():
        path, work, parts = folder / MODEL, from_model, [_bytes(folder / MODEL)]
    elif (folder / WORDS).is_file():
        path, work = folder / WORDS, from_words
        parts = [json.dumps({**config, **{role: spelled(config.get(role)) for role in ROLES}}).encode(), _bytes(path)]
    else:
        hint = f"add a {JSON}, a {VOCABULARY} with its {MERGES}, a {MODEL} or a {WORDS}"
        raise WeightsError("no tokenizer here", path=folder / JSON, hint=hint)
    try:
        return guarded(work, b"\0".join(parts), CONVERSION), path
    except ValueError as error:
        raise WeightsError("not a readable tokenizer", path=path, got=str(error)) from error


PREFIXING = ("GPT2Tokenizer", "Qwen2Tokenizer", "RobertaTokenizer")
"""Classes of transformers whose `add_prefix_space` decides in place of the ByteLevel step of a tokenizer.json."""


def _prefixed(data: bytes, config: dict[str, Any], folder: Path) -> bytes:
    """A tokenizer.json with the space before a text that its class is asked for; warns where that changes it."""
    asked, maker = config.get("add_prefix_space"), str(config.get("tokenizer_class", "")).removesuffix("Fast")
    if maker not in PREFIXING or not isinstance(asked, bool):
        return data
    found = json.loads(data)
    cuts = found.get("pre_tokenizer") or {}
    steps = [cut for cut in cuts.get("pretokenizers", [cuts]) if cut.get("type") == "ByteLevel"]
    changed = [cut for cut in steps if cut["add_prefix_space"] != asked]
    for cut in changed:
        cut["add_prefix_space"] = asked
    if changed:
        text = f"add_prefix_space is {asked}, as {maker} reads it, and {not asked} in {folder / JSON}"
        warnings.warn(f"{folder / CONFIG}: {text}", MoesaicWarning, stacklevel=3)
    return json.dumps(found).encode()


def _bytes(path: Path) -> bytes:
    return read_regular(path, LIMIT)


def _add(inner: "tokenizers.Tokenizer", folder: Path, config: dict[str, Any]) -> None:
    """Add the tokens that other files of the folder define, each at its id, and make special what they call so."""
    from tokenizers import AddedToken

    path = folder / CONFIG
    given: dict[int, AddedToken] = {}
    for key, facts in _table(config.get("added_tokens_decoder"), path).items():
        described = isinstance(facts, dict) and isinstance(facts.get("content"), str)
        if not re.fullmatch("[0-9]{1,9}", key) or not described:
            raise WeightsError("not a table of tokens", path=path, field="added_tokens_decoder", got=f"{key}: {facts}")
        flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
        given[int(key)] = AddedToken(facts["content"], **{flag: bool(facts.get(flag)) for flag in flags})
    special = {*_spellings(config)}
    if (folder / ADDED).is_file():
        path = folder / ADDED
        for text, number in read_json(path).items():
            if not isinstance(number, int):
                raise WeightsError("not a table of tokens", path=path, field=text, expected="an id", got=number)
            given.setdefault(number, AddedToken(text, normalized=False, special=text in special))
    known = inner.get_added_tokens_decoder()
    for id, token in sorted(given.items()):
        if id not in known or known[id].content != token.content:
            (inner.add_special_tokens if token.special else inner.add_tokens)([token])
        if inner.token_to_id(token.content) != id:
            got = inner.token_to_id(token.content)
            raise WeightsError("a token has two ids", path=path, field=token.content, expected=id, got=got)
    ordinary = [text for text in sorted(special) if _is_ordinary(inner, text)]
    inner.add_special_tokens([AddedToken(text, normalized=False) for text in ordinary])


def _is_ordinary(inner: "tokenizers.Tokenizer", text: str) -> bool:
    """Whether a text is in the vocabulary, but not as an added token."""
    id = inner.token_to_id(text)
    return id is not None and id not in inner.get_added_tokens_decoder()


def _spellings(config: dict[str, Any]) -> Iterable[str]:
    """The special tokens that a configuration names, with and without a role."""
    for value in (*(config.get(role) for role in ROLES), *(config.get("additional_special_tokens") or ())):
        if isinstance(text := spelled(value), str):
            yield text


def _table(value: Any, path: Path) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise WeightsError("not a table of tokens", path=path, field="added_tokens_decoder", got=json.dumps(value))
    return value
