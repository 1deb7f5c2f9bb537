"""Tests a tokenizer.json in a guarded process, as some make the library panic, hang or fill the memory.

Knows nothing about folders or special tokens.
"""

import hashlib
import json
import unicodedata
from pathlib import Path

from moesaic.errors import WeightsError
from moesaic.files.plain import decoded
from moesaic.tokenizer.guard import Limits, guarded

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

    decoded(data)
    inner = Inner.from_buffer(data)
    inner.no_truncation()
    inner.no_padding()
    size = max(inner.get_vocab().values(), default=-1) + 1
    if not 0 < size <= 1 << 22:
        raise ValueError(f"a vocabulary of {size} ids")
    for spelled in (False, True):
        inner.encode_special_tokens = spelled
        for text in PROBES:
            for framed in (False, True):
                ids = inner.encode(text, add_special_tokens=framed).ids
                inner.decode(ids, skip_special_tokens=framed)
    for id in (0, 1, size // 2, size - 1, size, (1 << 32) - 1):
        inner.decode([id])
    inner.decode(list(range(size)))
    inner.decode(list(range(size)), skip_special_tokens=False)
    return json.dumps([text for text in COVERED if not inner.encode(text, add_special_tokens=False).ids]).encode()
