"""Layers of a transformer: the linear slot, norms, rotary positions, attention with its cache, the ffn slot."""

from moesaic.nn.attention import Attention
from moesaic.nn.cache import Cache, Slots, Spare
from moesaic.nn.embedding import embedding
from moesaic.nn.ffn import GLU
from moesaic.nn.linear import Linear
from moesaic.nn.norm import OffsetRMSNorm, RMSNorm, norm
from moesaic.nn.pool import Pool
from moesaic.nn.rope import Mask, Rope, Span, apart
from moesaic.nn.sparse import SparseFFN, ffn

__all__ = [
    "GLU",
    "Attention",
    "Cache",
    "Linear",
    "Mask",
    "OffsetRMSNorm",
    "Pool",
    "RMSNorm",
    "Rope",
    "Slots",
    "Span",
    "Spare",
    "SparseFFN",
    "apart",
    "embedding",
    "ffn",
    "norm",
]
