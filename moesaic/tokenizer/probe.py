"""Tests a tokenizer.json in a guarded process, as some make the library panic, hang or fill the memory.

Knows nothing about folders or special tokens.
"""

import base64
import hashlib
import json
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

from moesaic.errors import WeightsError
from moesaic.files.plain import decoded
from moesaic.tokenizer.guard import Limits, guarded
from moesaic.tokenizer.inside import inside

PROBES = (
    "",
    " ",
    "".join(map(chr, range(256))),
    "\t\r\n\n  two  spaces \u00a0\u200b\ufeff",
    "hello wörld, naïve café — “quotes” …",
    "你好\uff0c世界 日本語 한국어",
    "Привет مرحبا שלום हिन्दी",
    "🙂 👩‍👩‍👧 🇫🇷",
    "e\u0301 a\u0323\u0307 \u0301",
    unicodedata.normalize("NFD", "Ångström"),
    "\ufffd\ufdd0\U0010ffff",
    "def f(x):\n\treturn {x: 1.5e-3}  # <s></s>[UNK]",
    "x" * 20_000,
    "ab " * 5_000,
    "1234567890" * 100,
)
COVERED = (*"AZaz09.,!?()", "é", "ß", "Ж", "日", "한", "م", "🙂")
"""Characters that every tokenizer should encode: without one, it drops that character silently."""

GROWTH = 256
"""How many times longer the steps of a tokenizer may make a text; those of published tokenizers make it 72 times."""

PREFIX = 16  # characters that a step may put before a text


def limits(size: int) -> Limits:
    """Limits for reading a file of `size` bytes: 2 seconds and 256 MiB, and more for a large vocabulary."""
    return Limits(2 + (size >> 20), 256 + 32 * (size >> 20))


_sound: dict[str, list[str]] = {}  # SHA-256 of a sound file -> the characters that it drops


def require_sound(data: bytes, where: Path) -> list[str]:
    """The characters of COVERED that a tokenizer.json drops; WeightsError, with `where` it was read, if it is unusable.

    Results are cached.
    """
    name = hashlib.sha256(data).hexdigest()
    if name not in _sound:
        try:
            _sound[name] = json.loads(guarded(examine, data, limits(len(data))))
        except ValueError as error:
            raise WeightsError("not a readable tokenizer", path=where, got=str(error)) from error
    return _sound[name]


def examine(data: bytes) -> bytes:
    """Parse strict JSON, then use the library in every way that the package does; runs in the guarded process."""
    from tokenizers import Tokenizer as Inner

    written = decoded(data)
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        if (times := growth(written.get(part))) > GROWTH:
            raise ValueError(f"{part}: it may make a text {times:,} times longer, more than {GROWTH}")
    inner = Inner.from_buffer(data)
    inner.no_truncation()
    inner.no_padding()
    owners = Counter(inner.get_vocab().values())
    size = max(owners, default=-1) + 1
    if not 0 < size <= 1 << 22:
        raise ValueError(f"a vocabulary of {size} ids")
    if len(owners) < owners.total():
        raise ValueError(f"two tokens have the id {owners.most_common(1)[0][0]}")
    for spelled in (False, True):
        inner.encode_special_tokens = spelled
        for text in PROBES:
            for framed in (False, True):
                ids = inner.encode(text, add_special_tokens=framed).ids
                inner.decode(ids, skip_special_tokens=framed)
    within = inside(inner)
    for text in PROBES:
        within.encode(text, add_special_tokens=False)
    for id in (0, 1, size // 2, size - 1, size, (1 << 32) - 1):
        inner.decode([id])
    inner.decode(list(range(size)))
    inner.decode(list(range(size)), skip_special_tokens=False)
    return json.dumps([text for text in COVERED if not inner.encode(text, add_special_tokens=False).ids]).encode()


def growth(part: Any) -> int:
    """An upper bound of how many times longer the steps of a normalizer, pre-tokenizer or decoder make a text.

    Forms of Unicode lengthen a text once, however often they are applied, unless a step before them writes new text.
    """
    times, foreign = 1, False
    for step in _steps(part):
        kind, times = step.get("type"), min(times * _times(step), 1 << 32)
        if foreign and kind in FORMS:
            times *= FORMS[kind]
        foreign |= "precompiled_charsmap" in step or not str(step.get("content", "")).isascii()
    return times


FORMS = {"NFC": 3, "NFD": 4, "NFKC": 18, "NFKD": 18, "Lowercase": 3, "BertNormalizer": 12}
"""The most characters that become of one."""


def _steps(part: Any) -> list[dict[str, Any]]:
    if not isinstance(part, dict):
        return []
    inner = [part[key] for key in ("normalizers", "pretokenizers", "decoders") if isinstance(part.get(key), list)]
    return [step for steps in inner for one in steps for step in _steps(one)] if inner else [part]


def _times(step: dict[str, Any]) -> int:
    match step:
        case {"pattern": {"String": str(pattern)}, "content": str(content)} if pattern:
            return max(1, -(-len(content) // len(pattern)))
        case {"pattern": _, "content": str(content)}:
            return 1 + len(content)  # an expression may match nothing, before every character
        case {"precompiled_charsmap": str(table)}:
            data = base64.b64decode(table)
            texts = data[4 + int.from_bytes(data[:4], "little") :].split(b"\0")
            return max(1, *(len(text.decode(errors="replace")) for text in texts))
        case {"prepend": str(text)}:
            return 1 if len(text) <= PREFIX else len(text)
        case {"type": "ByteLevel" | "Metaspace"} | {"add_prefix_space": _} | {"replacement": _}:
            return 2
    return 1
