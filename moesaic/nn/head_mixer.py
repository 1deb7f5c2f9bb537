"""The head mixer: one small layer for all heads, between attention and its output projection.

Knows nothing about attention: it acts on each token by itself.
"""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from moesaic.config import DecoderConfig
from moesaic.nn.linear import Linear
from moesaic.routing import Gates


class HeadMixer(nn.Module):
    """silu(W h + b) of the output h of each head; one W for all heads of a layer. It ignores `x`, attention's input.

    `residual`: h + silu(W h + b), the identity where W and b are 0, as they are at the start.
    """

    def __init__(self, config: DecoderConfig, residual: bool = False):
        super().__init__()
        self.residual = residual
        self.head_mix = Linear(config.head_dim, config.head_dim, bias=True)

    def forward(
        self, h: Float[Tensor, "b t h hd"], x: Float[Tensor, "b t d"], gates: Gates | None
    ) -> Float[Tensor, "b t h hd"]:
        mixed = F.silu(self.head_mix(h.flatten(1, 2), gates)).view(h.shape)
        return h + mixed if self.residual else mixed
