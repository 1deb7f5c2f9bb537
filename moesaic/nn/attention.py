"""Grouped-query attention over a Span of tokens, with or without a cache.

Knows nothing about masks or positions but what the Span holds.
"""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from moesaic.config import DecoderConfig
from moesaic.nn.cache import Cache, SlotRun
from moesaic.nn.head_gate import HeadGate
from moesaic.nn.head_mixer import HeadMixer
from moesaic.nn.linear import Linear
from moesaic.nn.norm import norm
from moesaic.nn.rope import Span
from moesaic.routing import Gates

FILLINGS: dict[str, Callable[[DecoderConfig], HeadMixer | HeadGate]] = {
    "mixer": HeadMixer,
    "residual_mixer": partial(HeadMixer, residual=True),
    "gate": HeadGate,
}
"""`head_filling` of a config -> what fills the slot `between(h, x, gates) -> h`, before `o_proj`."""


class Attention(nn.Module):
    """Causal self-attention; its four matrices are linear slots, `between` is one for the outputs of its heads.

    GQA: arXiv 2305.13245.
    """

    def __init__(self, config: DecoderConfig, layer: int):
        super().__init__()
        self.layer, self.head_dim, self.grouped = layer, config.head_dim, config.num_heads != config.num_kv_heads
        self.scale = config.query_scalar**-0.5 if config.query_scalar else None
        inner, inner_kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        bias = config.qkv_bias or config.attention_bias
        self.q_proj = Linear(config.hidden_size, inner, bias)
        self.k_proj = Linear(config.hidden_size, inner_kv, bias)
        self.v_proj = Linear(config.hidden_size, inner_kv, bias)
        self.o_proj = Linear(inner, config.hidden_size, config.attention_bias)
        self.q_norm = norm(config, config.head_dim) if config.qk_norm else None
        self.k_norm = norm(config, config.head_dim) if config.qk_norm else None
        self.between = FILLINGS[config.head_filling](config) if config.head_filling else None

    def forward(
        self, x: Float[Tensor, "b t d"], span: Span, cache: Cache | None, gates: Gates | None
    ) -> Float[Tensor, "b t d"]:
        q, k, v = (self.heads(part(x, gates)) for part in (self.q_proj, self.k_proj, self.v_proj))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = span.rotate(q), span.rotate(k)
        if cache is None:
            y = self.attend(q, k, v, span.mask)
        else:
            parts = [self.attend_run(q, k, v, span, cache, run) for run in cache.runs]
            y = parts[0] if len(parts) == 1 else torch.cat(parts)
        y = y.transpose(1, 2)
        if self.between is not None:
            y = self.between(y, x, gates)
        return self.o_proj(y.flatten(2), gates)

    def attend(
        self,
        q: Float[Tensor, "b h t hd"],
        k: Float[Tensor, "b g s hd"],
        v: Float[Tensor, "b g s hd"],
        mask: Bool[Tensor, "#b 1 t s"] | None,
    ) -> Float[Tensor, "b h t hd"]:
        """Without a mask, the tokens of one chunk see those before them, and a single token sees all keys."""
        causal = mask is None and q.shape[2] > 1
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=self.grouped, scale=self.scale
        )

    def attend_run(
        self,
        q: Float[Tensor, "b h t hd"],
        k: Float[Tensor, "b g t hd"],
        v: Float[Tensor, "b g t hd"],
        span: Span,
        cache: Cache,
        run: SlotRun,
    ) -> Float[Tensor, "r h t hd"]:
        """Write the chunk of a run's rows into their slots, and attend to all tokens in these slots without copying."""
        own, reach = run.rows, cache.reach(q.shape[2])
        keys, values = cache.write(self.layer, run, k[own], v[own], span.positions[own])
        seen = (k[own], v[own]) if cache.fresh else (keys[:, :, :reach], values[:, :, :reach])
        mask = None if span.mask is None else span.mask[own, ..., : seen[0].shape[2]]
        return self.attend(q[own], *seen, mask)

    def heads(self, x: Float[Tensor, "b t i"]) -> Float[Tensor, "b h t hd"]:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
