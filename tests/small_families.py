"""A tiny random model of every family of decoders, with a tokenizer, as folders."""

from pathlib import Path
from typing import Any

import torch

from moesaic.artefacts.base import save_base
from moesaic.config import TRAITS, RopeScaling
from moesaic.testing import tiny_decoder
from moesaic.tokenizer import Tokenizer

SPARSE = {"num_experts": 4, "experts_per_token": 2}
OWN: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"tie_embeddings": False},
    "qwen2": {},
    "qwen3": {"head_dim": 12},
    "gemma3_text": {"head_dim": 12, "local_rope_theta": 1e4, "rope_theta": 1e6, "window": 8, "local_layers": (0, 1, 2)},
    "mixtral": SPARSE,
    "qwen2_moe": {**SPARSE, "expert_size": 20, "shared_size": 28},
    "qwen3_moe": {**SPARSE, "head_dim": 12, "expert_size": 20},
}
"""Family -> the fields of a model that shows what it has of its own."""

LLAMA3 = RopeScaling(kind="llama3", factor=4.0, original_context=40)


def saved(folder: Path, family: str, tokenizer: Tokenizer, seed: int = 0, **changes: Any) -> Path:
    """Write a model of a family; norms and biases are random, too."""
    fields = {**TRAITS[family], "vocab_size": tokenizer.vocab_size, **OWN[family], **changes}
    decoder = tiny_decoder(seed, torch.float32, family=family, **fields)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in decoder.parameters():
            if weight.ndim == 1:
                weight.add_(torch.empty_like(weight).normal_(0, 0.3, generator=generator))
    folder.mkdir(parents=True)
    save_base(folder, decoder, tokenizer, {})
    return folder
