"""The sparse filling of the ffn slot: several ffns, of which the layer's own router chooses a few for each token.

Knows nothing about the mixture's router or its experts.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Int32
from torch import Tensor, nn

from moesaic.config import DecoderConfig
from moesaic.nn.ffn import ACTIVATIONS, GLU
from moesaic.nn.linear import Linear
from moesaic.ops.grouped import grouped
from moesaic.routing import Gates, Routing

SCORES: dict[str, Callable[[Float[Tensor, "n e"]], Float[Tensor, "n e"]]] = {
    "softmax": lambda logits: logits.softmax(-1),
    "sigmoid": lambda logits: logits.sigmoid(),
}
"""`router_scores` of a config -> what the scores of the experts are, from the router's logits."""

LEAST = 1e-20  # added to a sum of scores, which may all be 0

PACKED = re.compile(r"(.*\.experts)\.(gate_up|down)_proj")


class SparseFFN(nn.Module):
    """sum_e p_e expert_e(x) over the k experts of largest p = softmax(gate(x)). arXiv 2401.04088, section 2.

    With `shared_size` every token passes one more expert, its output times the sigmoid of a gate of its own.
    With `balance_bias` the experts of largest p + bias are chosen; it changes no weight (arXiv 2408.15664), and no
    gradient reaches it. Only adapters use the `gates` of the sequences. No token is dropped, and an expert without a
    token is not computed.
    """

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.chosen, self.renormalise = config.experts_per_token, config.renormalise
        self.num_experts, self.scores = config.num_experts, SCORES[config.router_scores]
        self.gate = Linear(config.hidden_size, config.num_experts)
        bias = nn.Parameter(torch.zeros(config.num_experts, dtype=torch.float32), requires_grad=False)
        self.balance_bias = bias if config.balance_bias else None
        self.experts = Experts(config)
        self.shared_expert = GLU(config, config.shared_size) if config.shared_size else None
        self.shared_expert_gate = Linear(config.hidden_size, 1) if config.shared_size else None

    def forward(self, x: Float[Tensor, "b t d"], gates: Gates | None) -> tuple[Float[Tensor, "b t d"], Routing | None]:
        logits = self.decide(x, gates).flatten(0, 1)
        chosen, values = self.choose(logits)
        experts, order = chosen.flatten().sort(stable=True)
        every = torch.arange(self.num_experts, device=x.device)
        ends = torch.searchsorted(experts, every, right=True, out_int32=True)
        asked = Asked(experts, ends, order, x.shape[1] * self.chosen)
        out = self.experts(x.flatten(0, 1).index_select(0, order // self.chosen), asked, gates)
        back = torch.empty_like(order).scatter(0, order, torch.arange(len(order), device=x.device))
        of_token = out.index_select(0, back).unflatten(0, chosen.shape)
        y = torch.bmm(values[:, None], of_token.to(values.dtype))[:, 0].to(x.dtype).view_as(x)
        if self.shared_expert is not None and self.shared_expert_gate is not None:
            y = y + self.shared_expert_gate(x, gates).sigmoid() * self.shared_expert(x, gates)[0]
        weights = torch.zeros_like(logits, dtype=values.dtype).scatter(1, chosen, values)
        return y, Routing(weights, logits.clone())  # fully_shard warns of views that a layer returns

    def decide(self, x: Float[Tensor, "b t d"], gates: Gates | None) -> Float[Tensor, "b t e"]:
        """The router's logits, in the type of its weights also under autocast."""
        if not torch.is_autocast_enabled(x.device.type):
            return self.gate(x, gates)
        with torch.autocast(x.device.type, enabled=False):
            return self.gate(x.to(self.experts.dtype), gates)

    def choose(self, logits: Float[Tensor, "n e"]) -> tuple[Int[Tensor, "n k"], Float[Tensor, "n k"]]:
        """The experts of each token and their weights, in float32 at least."""
        scores = self.scores(logits.to(torch.promote_types(logits.dtype, torch.float32)))
        ranked = scores if self.balance_bias is None else scores + self.balance_bias
        chosen = ranked.topk(self.chosen, -1).indices
        values = scores.gather(-1, chosen)
        return chosen, values / (values.sum(-1, keepdim=True) + LEAST) if self.renormalise else values


@dataclass(frozen=True)
class Asked:
    """Rows that are sorted by expert: each is a token that asks one of its experts.

    `ends`: where the rows of each expert end. `order`: the position of each row among those of the batch, sequence by
    sequence, token by token. `rows`: the number of rows of each sequence.
    """

    experts: Int[Tensor, " m"]
    ends: Int32[Tensor, " e"]
    order: Int[Tensor, " m"]
    rows: int


class Experts(nn.Module):
    """Gated ffns without biases: down(act(gate(x)) * up(x)); the matrices of all of them lie in two tensors."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        count, inner = config.num_experts, config.expert_size or config.intermediate_size
        self.act = ACTIVATIONS[config.activation]
        self.gate_up_proj = nn.Parameter(torch.empty(count, 2 * inner, config.hidden_size))
        self.down_proj = nn.Parameter(torch.empty(count, config.hidden_size, inner))

    @property
    def dtype(self) -> torch.dtype:
        return self.down_proj.dtype

    def forward(self, x: Float[Tensor, "m d"], asked: Asked, gates: Gates | None) -> Float[Tensor, "m d"]:
        """The outputs of rows that are sorted by expert; see `grouped`. It ignores `gates`, which adapters use."""
        return self.product(x, asked.ends, self.gate_up_proj, self.down_proj)

    def product(
        self,
        x: Float[Tensor, "m d"],
        ends: Int32[Tensor, " e"],
        gate_up: Float[Tensor, "e ii d"],
        down: Float[Tensor, "e d i"],
    ) -> Float[Tensor, "m d"]:
        """The same of experts whose matrices are given."""
        gate, up = grouped(x, gate_up, ends).chunk(2, -1)
        return grouped(self.act(gate) * up, down, ends)


def separated(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """The matrices of single experts in a tensor, as views by the names of linears; of others the tensor itself."""
    if not (match := PACKED.fullmatch(name)):
        return {name: tensor}
    experts, kind = match.groups()
    names = ("gate_proj", "up_proj") if kind == "gate_up" else ("down_proj",)
    parts = [own.chunk(len(names)) for own in tensor]
    return {
        f"{experts}.{number}.{name}.weight": part
        for number, some in enumerate(parts)
        for name, part in zip(names, some, strict=True)
    }


def separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All tensors, those of experts separated."""
    return {part: one for name, tensor in tensors.items() for part, one in separated(name, tensor).items()}


def ffn(config: DecoderConfig, layer: int) -> GLU | SparseFFN:
    return SparseFFN(config) if config.num_experts and layer not in config.dense_layers else GLU(config)
