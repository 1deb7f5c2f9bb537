"""A text as counts of its characters' sequences, hashed: what a router can read without asking any model.

Letter case, punctuation and how a text begins and ends are all in it, which most tokenizers of encoders throw away.
Knows nothing about tokens or routers.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

SIZE = 4096
LONGEST = 3
BEGIN, END = "\x02", "\x03"
ODD = tuple(np.uint32(odd) for odd in (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D))


def characters(texts: list[str]) -> Float[Tensor, f"n {SIZE}"]:
    """Each text's sequences of 1 to 3 characters, counted in `SIZE` buckets: roots of the counts, of length 1 together.

    The hashing trick (arXiv 0902.2206) on character n-grams; a mark stands before and behind each text, the
    white space around which does not count.
    """
    found = np.empty((len(texts), SIZE), np.float32)
    for row, text in enumerate(texts):
        codes = np.frombuffer(f"{BEGIN}{text.strip()}{END}".encode("utf-32-le", "surrogatepass"), np.uint32)
        buckets = [hashed(codes, length) for length in range(1, min(LONGEST, len(codes)) + 1)]
        counts = np.sqrt(np.bincount(np.concatenate(buckets), minlength=SIZE))
        found[row] = counts / np.linalg.norm(counts)
    return torch.from_numpy(found)


def hashed(codes: np.ndarray[tuple[int], np.dtype[np.uint32]], length: int) -> np.ndarray:
    """The bucket of every run of `length` characters: of sums of products with odd numbers, the twelve highest bits."""
    last = len(codes) - length + 1
    mixed = np.full(last, length, np.uint32)
    for place in range(length):
        mixed = (mixed ^ codes[place : place + last]) * ODD[place]
        mixed ^= mixed >> np.uint32(15)
    return mixed * ODD[0] >> np.uint32(32 - 12)
