"""Test doubles, shipped: a tiny decoder, toy experts, a byte tokenizer, a fixed router. Imported by tests only."""

import torch

from moesaic.adapters import LoRA
from moesaic.config import DecoderConfig
from moesaic.model.decoder import Decoder, initialise
from moesaic.routing.routers import Router

ALL_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def tiny_config(**changes: int | float | bool) -> DecoderConfig:
    sizes = {"vocab_size": 61, "hidden_size": 32, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2}
    return DecoderConfig(**{**sizes, "intermediate_size": 48, "context": 64, **changes})  # type: ignore[arg-type]


def tiny_decoder(seed: int = 0, dtype: torch.dtype = torch.float64, **changes: int | float | bool) -> Decoder:
    """A random decoder whose weights are large enough that every layer matters."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        decoder = initialise(Decoder(tiny_config(**changes)), torch.Generator().manual_seed(seed))
    finally:
        torch.set_default_dtype(before)
    with torch.no_grad():
        for weight in decoder.parameters():
            if weight.ndim == 2:
                weight.mul_(5)
    return decoder.eval()


def toy_expert(
    decoder: Decoder, seed: int, rank: int = 3, targets: list[str] = ALL_TARGETS, layers: range = range(99)
) -> LoRA:
    """A random LoRA expert that changes every output it touches."""
    generator = torch.Generator().manual_seed(seed)
    expert = LoRA.fresh(decoder, rank, 2.0 * rank, targets, layers, generator)
    for _, b in expert.pairs.values():
        b.normal_(0, 0.3, generator=generator)
    return expert


class FixedRouter:
    """Gives row i the logits of entry i, whatever it reads."""

    def __init__(self, logits: list[list[float]], dtype: torch.dtype = torch.float64):
        self.logits = torch.tensor(logits, dtype=dtype)

    def __call__(self, features: torch.Tensor | list[str]) -> torch.Tensor:
        return self.logits[: len(features)]


class ByteTokenizer:
    """Bytes as tokens: no files, no merges. Ids 0-255 are bytes, 256 ends a text."""

    vocab_size, eos = 257, 256

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        return bytes(i for i in ids if i < 256).decode(errors="replace")


_: type[Router] = FixedRouter
