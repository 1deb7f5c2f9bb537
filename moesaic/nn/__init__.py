"""The parts of a transformer: the linear slot, norm, rotary positions, attention with its cache, the dense ffn."""

from moesaic.nn.attention import Attention
from moesaic.nn.cache import Cache
from moesaic.nn.ffn import SwiGLU
from moesaic.nn.linear import Linear, LinearSlot
from moesaic.nn.norm import RMSNorm
from moesaic.nn.rope import Rope, Span

__all__ = ["Attention", "Cache", "Linear", "LinearSlot", "RMSNorm", "Rope", "Span", "SwiGLU"]
