"""The sparse filling of the ffn slot: several ffns, of which the layer's own router chooses a few for each token.

Knows nothing about the mixture's router or its experts.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from moesaic.config import DecoderConfig
from moesaic.nn.ffn import GLU
from moesaic.nn.linear import Linear
from moesaic.routing import Gates, Routing


class SparseFFN(nn.Module):
    """sum_e p_e expert_e(x) over the k experts of largest p = softmax(gate(x)). arXiv 2401.04088, section 2.

    Only `gate` uses the `gates` of the sequences; the experts have gates of the tokens. An expert without a token is
    not computed.
    """

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.chosen, self.renormalise = config.experts_per_token, config.renormalise
        self.gate = Linear(config.hidden_size, config.num_experts)
        self.experts = nn.ModuleList(GLU(config, config.expert_size) for _ in range(config.num_experts))

    def forward(self, x: Float[Tensor, "b t d"], gates: Gates | None) -> tuple[Float[Tensor, "b t d"], Routing | None]:
        tokens = x.flatten(0, 1)
        logits = self.gate(x, gates).flatten(0, 1)
        exact = torch.promote_types(x.dtype, torch.float32)
        values, chosen = logits.softmax(-1, dtype=exact).topk(self.chosen, -1)
        if self.renormalise:
            values = values / values.sum(-1, keepdim=True)
        own = Gates.of_choices(chosen, values, len(self.experts))
        y = torch.zeros_like(tokens)
        for expert, rows, weights in own.groups():
            out, _ = self.experts[expert](tokens[None, rows], None)
            y = y.index_add(0, rows, (out[0] * weights[:, None]).to(y.dtype))
        return y.view_as(x), Routing(own.weights, logits)


def ffn(config: DecoderConfig, layer: int) -> GLU | SparseFFN:
    return SparseFFN(config) if config.num_experts and layer not in config.dense_layers else GLU(config)
