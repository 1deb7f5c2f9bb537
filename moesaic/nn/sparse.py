"""The sparse filling of the ffn slot: several ffns, of which the layer's own router chooses a few for each token.

Knows nothing about the mixture's router or its experts.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from moesaic.config import DecoderConfig
from moesaic.nn.ffn import GLU
from moesaic.nn.linear import Linear
from moesaic.routing import Gates, Routing

SCORES: dict[str, Callable[[Float[Tensor, "n e"]], Float[Tensor, "n e"]]] = {
    "softmax": lambda logits: logits.softmax(-1),
    "sigmoid": lambda logits: logits.sigmoid(),
}
"""`router_scores` of a config -> what the scores of the experts are, from the router's logits."""

LEAST = 1e-20  # added to a sum of scores, which may all be 0


class SparseFFN(nn.Module):
    """sum_e p_e expert_e(x) over the k experts of largest p = softmax(gate(x)). arXiv 2401.04088, section 2.

    With `balance_bias` the experts of largest p + bias are chosen; it changes no weight (arXiv 2408.15664), and no
    gradient reaches it. Only `gate` uses the `gates` of the sequences; the experts have gates of the tokens. An expert
    without a token is not computed.
    """

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.chosen, self.renormalise = config.experts_per_token, config.renormalise
        self.scores = SCORES[config.router_scores]
        self.gate = Linear(config.hidden_size, config.num_experts)
        bias = nn.Parameter(torch.zeros(config.num_experts, dtype=torch.float32), requires_grad=False)
        self.balance_bias = bias if config.balance_bias else None
        self.experts = nn.ModuleList(GLU(config, config.expert_size) for _ in range(config.num_experts))

    def forward(self, x: Float[Tensor, "b t d"], gates: Gates | None) -> tuple[Float[Tensor, "b t d"], Routing | None]:
        tokens = x.flatten(0, 1)
        logits = self.gate(x, gates).flatten(0, 1)
        own = Gates.of_choices(*self.choose(logits), len(self.experts))
        y = torch.zeros_like(tokens)
        for expert, rows, weights in own.groups():
            out, _ = self.experts[expert](tokens[None, rows], None)
            y = y.index_add(0, rows, (out[0] * weights[:, None]).to(y.dtype))
        return y.view_as(x), Routing(own.weights, logits)

    def choose(self, logits: Float[Tensor, "n e"]) -> tuple[Int[Tensor, "n k"], Float[Tensor, "n k"]]:
        """The experts of each token and their weights, in float32 at least."""
        scores = self.scores(logits.to(torch.promote_types(logits.dtype, torch.float32)))
        ranked = scores if self.balance_bias is None else scores + self.balance_bias
        chosen = ranked.topk(self.chosen, -1).indices
        values = scores.gather(-1, chosen)
        return chosen, values / (values.sum(-1, keepdim=True) + LEAST) if self.renormalise else values


def ffn(config: DecoderConfig, layer: int) -> GLU | SparseFFN:
    return SparseFFN(config) if config.num_experts and layer not in config.dense_layers else GLU(config)
