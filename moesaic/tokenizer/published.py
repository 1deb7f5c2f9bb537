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
from moesaic.tokenizer.class_settings import by_class
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

FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
"""Flags of an added token."""

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
    inner = Inner.from_buffer(_as_its_class(data, config, folder))
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


def _as_its_class(data: bytes, config: dict[str, Any], folder: Path) -> bytes:
    """A tokenizer.json as its class in transformers reads it; warns where that changes it."""
    own = folder / "config.json"
    made, changed = by_class(data, config, read_json(own).get("model_type") if own.is_file() else None)
    if changed and (folder / JSON).is_file():
        text = f"{'; '.join(changed)} in {folder / JSON}; {config['tokenizer_class']} reads {CONFIG}"
        warnings.warn(f"{folder / CONFIG}: {text}", MoesaicWarning, stacklevel=3)
    return made


def _bytes(path: Path) -> bytes:
    return read_regular(path, LIMIT)


def _add(inner: "tokenizers.Tokenizer", folder: Path, config: dict[str, Any]) -> None:
    """Add the tokens that other files of the folder define, each at its id, and make special what they call so.

    As in transformers, a table in tokenizer_config.json decides the flags of its tokens, and where there is one,
    added_tokens.json adds none. A warning tells where the files differ.
    """
    from tokenizers import AddedToken

    given, path = _given(folder, config)
    known = inner.get_added_tokens_decoder()
    differing = []
    for id, token in sorted(given.items()):
        same = id in known and known[id].content == token.content
        changed = [flag for flag in FLAGS if same and getattr(known[id], flag) != getattr(token, flag)]
        decided = path.name == CONFIG and bool(changed)
        if not same or decided:
            (inner.add_special_tokens if token.special else inner.add_tokens)([token])
        if decided:
            facts = (
                f"{flag} {getattr(token, flag)}, and {getattr(known[id], flag)} in {folder / JSON}" for flag in changed
            )
            differing.append(f"{token.content} has {', '.join(facts)}")
        if inner.token_to_id(token.content) != id:
            got = inner.token_to_id(token.content)
            raise WeightsError("a token has two ids", path=path, field=token.content, expected=id, got=got)
    if differing and (folder / JSON).is_file():
        more = f", and {len(differing) - 1} more tokens differ" if len(differing) > 1 else ""
        text = f"{differing[0]}{more}; {CONFIG} decides, as in transformers"
        warnings.warn(f"{path}: {text}", MoesaicWarning, stacklevel=4)
    ordinary = [text for text in sorted({*_spellings(config)}) if _is_ordinary(inner, text)]
    inner.add_special_tokens([AddedToken(text, normalized=False) for text in ordinary])


def _given(folder: Path, config: dict[str, Any]) -> tuple[dict[int, "tokenizers.AddedToken"], Path]:
    """The tokens that files beside tokenizer.json add, by their ids, and the file that lists them."""
    from tokenizers import AddedToken

    path, given = folder / CONFIG, dict[int, AddedToken]()
    roles = {spelled(config.get(role)) for role in ROLES}
    for key, facts in _table(config.get("added_tokens_decoder"), path).items():
        described = isinstance(facts, dict) and isinstance(facts.get("content"), str)
        if not re.fullmatch("[0-9]{1,9}", key) or not described:
            raise WeightsError("not a table of tokens", path=path, field="added_tokens_decoder", got=f"{key}: {facts}")
        flags = {flag: bool(facts[flag]) for flag in FLAGS if flag in facts}
        if facts["content"] in roles:
            flags["special"] = True
        given[int(key)] = AddedToken(facts["content"], **flags)
    if not (folder / ADDED).is_file():
        return given, path
    added, listed, special = folder / ADDED, read_json(folder / ADDED), {*_spellings(config)}
    for text, number in listed.items():
        if not isinstance(number, int):
            raise WeightsError("not a table of tokens", path=added, field=text, expected="an id", got=number)
    if "added_tokens_decoder" not in config:
        ordinary = {text: text not in special for text in listed}
        return {
            listed[text]: AddedToken(text, normalized=own, special=not own) for text, own in ordinary.items()
        }, added
    if other := [text for text, id in listed.items() if id not in given or given[id].content != text]:
        text = f"{other[0]} is {listed[other[0]]}, which added_tokens_decoder in {path} does not say"
        warnings.warn(f"{added}: {text}; {CONFIG} decides, as in transformers", MoesaicWarning, stacklevel=5)
    return given, path


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
