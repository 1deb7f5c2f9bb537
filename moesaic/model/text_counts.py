"""A text as hashed counts of its character sequences and of its last words: features for routers without a model.

Counts of characters distinguish letter case, punctuation and the ends of a text; those of words do not. Knows nothing
about tokens or routers.
"""

import re
from itertools import pairwise
from zlib import crc32

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

SIZE, LONGEST = 4096, 3
LAST = 60  # characters: what is asked stands at the end, behind a system prompt and earlier turns
BEGIN, END = "\x02", "\x03"
LENGTHS = np.arange(1, LONGEST + 1, dtype=np.uint32)[:, None]
ODD = tuple(np.uint32(odd) for odd in (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D))


def characters(texts: list[str]) -> Float[Tensor, f"n {SIZE}"]:
    """Square roots of the counts of each text's sequences of 1 to 3 characters in `SIZE` buckets, at unit length.

    The hashing trick (arXiv 0902.2206) on character n-grams of the stripped text between two marks.
    """
    found = np.empty((len(texts), SIZE), np.float32)
    for row, text in enumerate(texts):
        codes = np.frombuffer(f"{BEGIN}{text.strip()}{END}".encode("utf-32-le", "surrogatepass"), np.uint32)
        buckets = hashed(codes)
        found[row] = np.sqrt(np.bincount(buckets, minlength=SIZE) * (1 / len(buckets)))
    return torch.from_numpy(found)


def hashed(codes: np.ndarray[tuple[int], np.dtype[np.uint32]]) -> np.ndarray:
    """The bucket of every sequence of up to `LONGEST` characters: the twelve highest bits of its hash."""
    n = len(codes)
    mixed = np.repeat(LENGTHS, n, 1)
    for place in range(min(LONGEST, n)):
        those = mixed[place:, : n - place]  # sequences that have a character here
        those ^= codes[place:]
        those *= ODD[place]
        those ^= those >> np.uint32(15)
    buckets = mixed * ODD[0] >> np.uint32(32 - 12)
    return np.concatenate([buckets[length, : n - length] for length in range(min(LONGEST, n))])


def last_words(texts: list[str]) -> Float[Tensor, f"n {SIZE}"]:
    """Square roots of the counts of each text's words and pairs of words among its last characters, at unit length.

    In `SIZE` buckets, in lower case; a sign is a word.
    """
    found = np.zeros((len(texts), SIZE), np.float32)
    for row, text in enumerate(texts):
        some = re.findall(r"\w+|[^\w\s]", text.strip()[-LAST:].lower())
        both = [*some, *(f"{one} {next}" for one, next in pairwise(some))]
        buckets = [crc32(one.encode("utf-8", "surrogatepass")) % SIZE for one in both]
        counts = np.sqrt(np.bincount(np.array(buckets, np.int64), minlength=SIZE))
        found[row] = counts / max(np.linalg.norm(counts), 1.0)
    return torch.from_numpy(found)


def wording(texts: list[str]) -> Float[Tensor, f"n {2 * SIZE}"]:
    """Both side by side: characters of the whole text, and its last words."""
    return torch.cat([characters(texts), last_words(texts)], 1)
