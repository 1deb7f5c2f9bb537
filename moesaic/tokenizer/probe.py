"""Is a tokenizer.json sound? Asked in a guarded process, as the library panics, hangs or fills the memory on some.

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
"""What a text is made of; a tokenizer for which one of these is nothing loses it without a word."""


def limits(size: int) -> Limits:
    """What reading a file of `size` bytes may take: 2 seconds and 256 MiB, and more for a large vocabulary."""
    return Limits(2 + (size >> 20), 256 + 32 * (size >> 20))


_sound: dict[str, list[str]] = {}  # by the SHA-256 of a file that was found sound: what it drops


def require_sound(data: bytes, where: Path) -> list[str]:
    """Refuse a tokenizer.json that cannot be used; which of the characters in `COVERED` it drops without a trace.

    What was found sound once is not asked again. WeightsError names `where` the bytes were read.
    """
    name = hashlib.sha256(data).hexdigest()
    if name not in _sound:
        try:
            _sound[name] = json.loads(guarded(examine, data, limits(len(data))))
        except ValueError as error:
            raise WeightsError("not a readable tokenizer", path=where, got=str(error)) from error
    return _sound[name]


def examine(data: bytes) -> bytes:
    """The work of the guarded process: strict JSON, then every way in which the package uses the library."""
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
