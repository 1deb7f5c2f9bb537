"""The head gate: how much of each head's output reaches the output projection.

Knows nothing about attention: it acts on each token by itself.
"""

from jaxtyping import Float
from torch import Tensor, nn

from moesaic.config import DecoderConfig
from moesaic.nn.linear import Linear
from moesaic.routing import Gates


class HeadGate(nn.Module):
    """sigmoid(W x) h of the output h of each head; x is the input of attention. Headwise, of arXiv 2505.06708."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.head_gate = Linear(config.hidden_size, config.num_heads)

    def forward(
        self, h: Float[Tensor, "b t h hd"], x: Float[Tensor, "b t d"], gates: Gates | None
    ) -> Float[Tensor, "b t h hd"]:
        return h * self.head_gate(x, gates).sigmoid()[..., None]
