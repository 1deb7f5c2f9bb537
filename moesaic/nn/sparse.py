"""The sparse filling of the ffn slot: several ffns, of which each token asks the few that its own router chooses.

Knows nothing about the mixture's router: these experts are the base's own, without names, and decide in every layer.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from moesaic.config import DecoderConfig
from moesaic.nn.ffn import GLU
from moesaic.nn.linear import Linear
from moesaic.routing import Gates


class SparseFFN(nn.Module):
    """sum over the k experts of largest p, of p_e expert_e(x), with p = softmax(gate(x)). arXiv 2401.04088, section 2.

    `gates`: those of the sequences, for `gate`; the tokens make their own. An expert without a token is not computed.
    """

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.chosen, self.renormalise = config.experts_per_token, config.renormalise
        self.gate = Linear(config.hidden_size, config.num_experts)
        self.experts = nn.ModuleList(GLU(config, config.expert_size) for _ in range(config.num_experts))

    def choose(self, x: Float[Tensor, "b t d"], gates: Gates | None) -> Gates:
        """The experts of every token, b x t of them, and their weights, in float32 at least."""
        logits = self.gate(x, gates).flatten(0, 1)
        exact = torch.promote_types(x.dtype, torch.float32)
        values, chosen = logits.softmax(-1, dtype=exact).topk(self.chosen, -1)
        if self.renormalise:
            values = values / values.sum(-1, keepdim=True)
        return Gates.of_choices(chosen, values, len(self.experts))

    def forward(self, x: Float[Tensor, "b t d"], gates: Gates | None) -> Float[Tensor, "b t d"]:
        tokens, own = x.flatten(0, 1), self.choose(x, gates)
        y = torch.zeros_like(tokens)
        for expert, rows, weights in own.groups():
            out = self.experts[expert](tokens[None, rows], None)
            y = y.index_add(0, rows, (out[0] * weights[:, None]).to(y.dtype))
        return y.view_as(x)


def ffn(config: DecoderConfig, layer: int) -> GLU | SparseFFN:
    """The feed-forward block of a layer."""
    return SparseFFN(config) if config.num_experts and layer not in config.dense_layers else GLU(config)
