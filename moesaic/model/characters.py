"""A text as hashed counts of its character sequences: a feature for routers that needs no model.

The counts distinguish letter case, punctuation and the ends of a text. Knows nothing about tokens or routers.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

SIZE, LONGEST = 4096, 3
BEGIN, END = "\x02", "\x03"
ODD = tuple(np.uint32(odd) for odd in (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D))


def characters(texts: list[str]) -> Float[Tensor, f"n {SIZE}"]:
    """Square roots of the counts of each text's sequences of 1 to 3 characters in `SIZE` buckets, at unit length.

    The hashing trick (arXiv 0902.2206) on character n-grams of the stripped text between two marks.
    """
    found = np.empty((len(texts), SIZE), np.float32)
    for row, text in enumerate(texts):
        codes = np.frombuffer(f"{BEGIN}{text.strip()}{END}".encode("utf-32-le", "surrogatepass"), np.uint32)
        buckets = [hashed(codes, length) for length in range(1, min(LONGEST, len(codes)) + 1)]
        counts = np.sqrt(np.bincount(np.concatenate(buckets), minlength=SIZE))
        found[row] = counts / np.linalg.norm(counts)
    return torch.from_numpy(found)


def hashed(codes: np.ndarray[tuple[int], np.dtype[np.uint32]], length: int) -> np.ndarray:
    """The bucket of every sequence of `length` characters: the twelve highest bits of its hash."""
    last = len(codes) - length + 1
    mixed = np.full(last, length, np.uint32)
    for place in range(length):
        mixed = (mixed ^ codes[place : place + last]) * ODD[place]
        mixed ^= mixed >> np.uint32(15)
    return mixed * ODD[0] >> np.uint32(32 - 12)
