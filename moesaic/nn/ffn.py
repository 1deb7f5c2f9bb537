"""The ffn slot, `ffn(x, gates) -> (y, Routing | None)`, and its dense filling.

Knows nothing about attention or routers.
"""

from collections.abc import Callable
from functools import partial

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from moesaic.config import DecoderConfig
from moesaic.nn.linear import Linear
from moesaic.routing import Gates, Routing

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "gelu_tanh": partial(F.gelu, approximate="tanh")}


class GLU(nn.Module):
    """down(act(gate(x)) * up(x)): SwiGLU or GeGLU. GLU Variants Improve Transformer (arXiv 2002.05202), equation 6."""

    def __init__(self, config: DecoderConfig, inner: int = 0):
        super().__init__()
        inner = inner or config.intermediate_size
        self.act = ACTIVATIONS[config.activation]
        self.gate_proj = Linear(config.hidden_size, inner, config.mlp_bias)
        self.up_proj = Linear(config.hidden_size, inner, config.mlp_bias)
        self.down_proj = Linear(inner, config.hidden_size, config.mlp_bias)

    def forward(self, x: Float[Tensor, "n t d"], gates: Gates | None) -> tuple[Float[Tensor, "n t d"], Routing | None]:
        return self.down_proj(self.act(self.gate_proj(x, gates)) * self.up_proj(x, gates), gates), None
