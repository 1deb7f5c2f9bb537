"""The ffn slot, `ffn(x, gates) -> (y, Routing | None)`, and its dense filling.

Knows nothing about attention or about who routes.
"""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from moesaic.config import DecoderConfig
from moesaic.nn.linear import Linear
from moesaic.routing import Gates, Routing


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)). GLU Variants Improve Transformer (arXiv 2002.05202), equation 6."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Float[Tensor, "n t d"], gates: Gates | None) -> tuple[Float[Tensor, "n t d"], Routing | None]:
        return self.down_proj(F.silu(self.gate_proj(x, gates)) * self.up_proj(x, gates), gates), None
