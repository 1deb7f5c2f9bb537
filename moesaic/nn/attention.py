"""Grouped-query attention over a Span of tokens, with or without a cache: one code path, one model.

Knows nothing about masks or positions beyond the Span it is handed.
"""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from moesaic.config import DecoderConfig
from moesaic.nn.cache import Cache
from moesaic.nn.linear import Linear
from moesaic.nn.rope import Span
from moesaic.routing import Gates


class Attention(nn.Module):
    """Causal self-attention; its four matrices are linear slots. GQA: arXiv 2305.13245."""

    def __init__(self, config: DecoderConfig, layer: int):
        super().__init__()
        self.layer, self.head_dim, self.grouped = layer, config.head_dim, config.num_heads != config.num_kv_heads
        inner, inner_kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, inner)
        self.k_proj = Linear(config.hidden_size, inner_kv)
        self.v_proj = Linear(config.hidden_size, inner_kv)
        self.o_proj = Linear(inner, config.hidden_size)

    def forward(
        self, x: Float[Tensor, "b t d"], span: Span, cache: Cache | None, gates: Gates | None
    ) -> Float[Tensor, "b t d"]:
        q = span.rotate(self.heads(self.q_proj(x, gates)))
        k = span.rotate(self.heads(self.k_proj(x, gates)))
        v = self.heads(self.v_proj(x, gates))
        if cache is not None:
            k, v = cache.write(self.layer, k, v, span.positions)
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=span.mask, is_causal=span.mask is None, enable_gqa=self.grouped
        )
        return self.o_proj(y.transpose(1, 2).flatten(2), gates)

    def heads(self, x: Float[Tensor, "b t i"]) -> Float[Tensor, "b h t hd"]:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
