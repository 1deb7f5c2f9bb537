"""The decoding speed of a decoder for one row, from the median step, which ignores disturbed steps.

Knows nothing about text. Results differ from run to run, so they belong in timings only.
"""

import statistics
import time

import torch

from moesaic.model.decoder import Decoder
from moesaic.nn import Cache
from moesaic.ops.host import to_host
from moesaic.routing import Gates

PROMPT, STEPS = 32, 24


@torch.inference_mode()
def tokens_per_second(decoder: Decoder, gates: Gates | None) -> float:
    """Greedy tokens per second of one row after a short prompt, without the prompt's own pass."""
    cache = Cache.empty(decoder.config, 1, PROMPT + STEPS, decoder.norm.weight)
    chunk, laps = torch.zeros(1, PROMPT, dtype=torch.long, device=decoder.norm.weight.device), []
    for _ in range(STEPS):
        started = time.perf_counter()
        logits = decoder(chunk, cache, gates).logits
        cache = cache.advance(chunk.shape[1])
        chunk = logits[:, -1].argmax(-1)[:, None]
        to_host(chunk)  # a device computes on while the host goes on
        laps.append(time.perf_counter() - started)
    return 1 / statistics.median(laps[1:])
