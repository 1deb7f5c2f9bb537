"""How big a model is: one frozen dataclass, and the named sizes as data.

Knows nothing about torch, files or other people's config keys (`weights/` translates those).
"""

import re
from dataclasses import dataclass
from typing import Literal

from moesaic.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The size and wiring of a Llama-shaped decoder."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    intermediate_size: int
    context: int
    head_dim: int = 0  # 0: hidden_size / num_heads
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "intermediate_size", "context")
        for field in sizes:
            if getattr(self, field) < 1:
                raise RecipeError(
                    "a model size must be positive", field=field, expected=">= 1", got=getattr(self, field)
                )
        if not self.head_dim:
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_heads)
        if self.num_heads % self.num_kv_heads:
            raise RecipeError(
                "query heads must divide evenly among key/value heads",
                field="num_kv_heads",
                expected=f"a divisor of num_heads = {self.num_heads}",
                got=self.num_kv_heads,
            )
        if self.head_dim % 2:
            raise RecipeError("rotary positions need an even head_dim", field="head_dim", got=self.head_dim)


# hidden, layers, heads, kv heads, ffn, context
SIZES: dict[str, tuple[int, int, int, int, int, int]] = {
    "nano": (32, 2, 4, 2, 64, 128),
    "micro": (96, 3, 6, 2, 256, 256),
    "tiny": (192, 4, 6, 2, 640, 512),
    "small": (384, 8, 6, 2, 1024, 1024),
}


def sized(name: str, vocab_size: int) -> DecoderConfig:
    """The configuration of a named size with a vocabulary of `vocab_size` tokens."""
    hidden, layers, heads, kv_heads, ffn, context = SIZES[name]
    return DecoderConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        intermediate_size=ffn,
        context=context,
    )


FEATURES = ("text", "embedding_mean", "hidden_mean", "hidden_last", "hidden@K", "hidden@K_last")


@dataclass(frozen=True)
class Feature:
    """What a router reads: the text itself, or states of the base after `depth` blocks, pooled over the prompt.

    `depth` 0 is the embedding, None the state after all blocks and the final norm.
    """

    source: Literal["text", "state"]
    depth: int | None
    pool: Literal["mean", "last"]

    @staticmethod
    def parse(kind: str) -> "Feature":
        if kind == "text":
            return Feature("text", 0, "mean")
        if kind == "embedding_mean":
            return Feature("state", 0, "mean")
        if match := re.fullmatch(r"hidden(?:@([1-9]\d*))?(_mean|_last)?", kind):
            depth, pool = match.groups()
            if (depth is None) != (pool is None) or pool == "_last":
                return Feature("state", int(depth) if depth else None, "last" if pool == "_last" else "mean")
        raise RecipeError("unknown feature", field="feature", expected=f"one of {', '.join(FEATURES)}", got=kind)
