"""The tokenizer in a file of llama.cpp <-> the files of a tokenizer of this package.

Two kinds of vocabulary are read and written: `gpt2`, a byte-level BPE whose texts are cut as its `pre` says, and
`llama`, pieces of SentencePiece with scores. Knows nothing about tensors.
"""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from moesaic.errors import CompatibilityError, WeightsError
from moesaic.files import disk
from moesaic.files.plain import encoded
from moesaic.gguf.container import Container
from moesaic.tokenizer import Tokenizer
from moesaic.tokenizer.conversion import BYTE, CONTROL, UNKNOWN, UNUSED, USER, WORD, from_vocabulary
from moesaic.tokenizer.cutting import PREPENDED, cut_of, steps, unlike
from moesaic.tokenizer.guard import guarded
from moesaic.tokenizer.published import CONVERSION

PREFIX = "tokenizer.ggml"
TEMPLATE = "tokenizer.chat_template"
ROLES = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
"""Role of a special token in a file -> in tokenizer_config.json."""
ENDS = ("eos", "eot", "eom")
"""Roles of the tokens that end a generated text."""
STARTED = {"llama": True, "gpt2": False}
"""Kind -> whether sequences begin with `bos` where the file does not say."""


def unpack(file: Container, folder: Path) -> dict[str, Any]:
    """Write the files of a tokenizer, and return the special ids for a config.json."""
    kind = file.need(f"{PREFIX}.model", str)
    if kind not in STARTED:
        field, expected = f"{PREFIX}.model", f"one of {', '.join(STARTED)}"
        raise WeightsError("an unknown kind of tokenizer", path=file.path, field=field, expected=expected, got=kind)
    tokens, count = listed(file, "tokens", str), len(file.need(f"{PREFIX}.tokens", list))
    found = {"kind": kind, "tokens": tokens, "types": listed(file, "token_type", int) or [WORD] * count}
    found |= {"scores": listed(file, "scores", float), "merges": listed(file, "merges", str)}
    found |= {"pre": file.need(f"{PREFIX}.pre", str, ""), "prefix": file.need(f"{PREFIX}.add_space_prefix", bool, True)}
    ids = {role: special(file, role, count) for role in (*ROLES, *ENDS)}
    bos, ends = ids["bos"], [*dict.fromkeys(id for role in ENDS if (id := ids[role]) is not None)]
    started = file.need(f"{PREFIX}.add_bos_token", bool, STARTED[kind] or found["pre"] == "llama-bpe")
    found["start"] = bos if started else None
    try:
        disk.create(folder / "tokenizer.json", guarded(from_vocabulary, json.dumps(found).encode(), CONVERSION))
    except ValueError as error:
        raise WeightsError("not a readable tokenizer", path=file.path, field=PREFIX, got=str(error)) from error
    names = {own: tokens[id] for role, own in ROLES.items() if (id := ids[role]) is not None}
    disk.create(
        folder / "tokenizer_config.json", encoded({"tokenizer_class": "PreTrainedTokenizerFast", **names}, indent=2)
    )
    disk.create(folder / "generation_config.json", encoded({"eos_token_id": ends}, indent=2))
    if template := file.need(TEMPLATE, str, ""):
        disk.create(folder / "chat_template.jinja", template.encode())
    return {"bos_token_id": bos, "eos_token_id": ends, "pad_token_id": ids["padding"]}


def listed(file: Container, name: str, kind: type) -> list[Any]:
    """A list of the vocabulary, each value of one type; [] where there is none."""
    values = file.need(f"{PREFIX}.{name}", list, [])
    if not all(isinstance(value, kind) for value in values):
        field = f"{PREFIX}.{name}"
        raise WeightsError("values of another type", path=file.path, field=field, expected=kind.__name__)
    return values


def special(file: Container, role: str, count: int) -> int | None:
    key = f"{PREFIX}.{role}_token_id"
    id = file.metadata.get(key)
    if id is not None and (type(id) is not int or not 0 <= id < count):
        raise WeightsError("no such token", path=file.path, field=key, expected=f"0 to {count - 1:,}", got=id)
    return id


def pack(tokenizer: Tokenizer, rows: int) -> dict[str, Any]:
    """The keys of a tokenizer for a model with so many rows in its embedding.

    CompatibilityError for a tokenizer that llama.cpp would read differently.
    """
    whole = json.loads(tokenizer.inner.to_str())
    model = whole["model"]
    kind = "llama" if model.get("byte_fallback") else "gpt2"
    if difference := unlike(whole):
        what, hint = "llama.cpp has no such tokenizer", "export another format"
        raise CompatibilityError(what, field="tokenizer.json", got=difference, hint=hint)
    tokens, types = [f"[PAD{id}]" for id in range(rows)], [UNUSED] * rows
    added = tokenizer.inner.get_added_tokens_decoder()
    for token, id in tokenizer.inner.get_vocab().items():
        if id < rows:
            tokens[id], types[id] = token, WORD
            if id in added:
                types[id] = CONTROL if added[id].special else USER
            elif kind == "llama" and len(token) == 6 and token.startswith("<0x"):
                types[id] = BYTE
    if kind == "llama" and model["unk_token"] is not None:
        types[model["vocab"][model["unk_token"]]] = UNKNOWN
    found: dict[str, Any] = {f"{PREFIX}.model": kind}
    merges = [(left, right) for left, right in model["merges"]]
    if cut := cut_of(whole) if kind == "gpt2" else None:
        found |= {f"{PREFIX}.pre": cut.name, f"{PREFIX}.merges": [" ".join(pair) for pair in merges]}
        found |= {f"{PREFIX}.tokens": tokens}
    else:
        first = firsts(merges)
        if not is_scored(merges, {token for token, type in zip(tokens, types, strict=True) if type in (WORD, USER)}):
            what, hint = "llama.cpp ranks tokens, not merges, and has no such tokenizer", "export another format"
            raise CompatibilityError(
                what, field="tokenizer.json", got="merges of one token at several ranks", hint=hint
            )
        scores = [-float(first[token]) if token in first else 0.0 for token in tokens]
        found |= {f"{PREFIX}.pre": "default", f"{PREFIX}.tokens": tokens, f"{PREFIX}.scores": scores}
        found |= {f"{PREFIX}.add_space_prefix": PREPENDED in steps(whole, "normalizer")}
    own = tokenizer.special
    ids = {"bos": own.bos, "eos": own.eos, "unknown": own.unk, "padding": own.pad}
    ids |= {"eot": next((id for id in own.ends if id != own.eos), None)}
    found |= {f"{PREFIX}.token_type": types}
    found |= {f"{PREFIX}.{role}_token_id": id for role, id in ids.items() if id is not None}
    found |= {f"{PREFIX}.add_bos_token": bool(own.start)}
    return found | ({TEMPLATE: tokenizer.template.source} if tokenizer.template else {})


Merges = Sequence[tuple[str, str]]


def firsts(merges: Merges) -> dict[str, int]:
    """Token -> the rank of the first merge that makes it."""
    return {left + right: at for at, (left, right) in reversed([*enumerate(merges)])}


def is_scored(merges: Merges, tokens: set[str]) -> bool:
    """Whether scores of tokens decide as the ranks of merges do: all merges of a token are there, one after another."""
    made = [left + right for left, right in merges]
    changes = sum(one != other for one, other in pairwise(made))
    pairs = {(token[:cut], token[cut:]) for token in {*made} for cut in range(1, len(token))}
    return changes + 1 == len({*made}) and {*merges} == {(a, b) for a, b in pairs if a in tokens and b in tokens}


def canonical(tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer of scored pieces with the merges of a token in one order, as their order does not matter."""
    whole = json.loads(tokenizer.inner.to_str())
    if not whole["model"].get("byte_fallback"):
        return tokenizer
    merges = [(left, right) for left, right in whole["model"]["merges"]]
    first = firsts(merges)
    whole["model"]["merges"] = sorted(merges, key=lambda pair: (first[pair[0] + pair[1]], len(pair[0])))
    inner = type(tokenizer.inner).from_str(json.dumps(whole))
    return Tokenizer(inner, tokenizer.special, tokenizer.template)
