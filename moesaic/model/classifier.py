"""Texts -> log-probabilities over the labels of all experts' tasks: a base, one state a row, a head for each expert.

Knows nothing about files, tokenizers or routers. The same Gates choose adapters in the base and heads behind it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from moesaic.config import Pool
from moesaic.model.deciding import Decider
from moesaic.model.decoder import Decoder
from moesaic.model.encoder import Encoder
from moesaic.model.features import Prompts
from moesaic.routing import Gates, Routing, require

EPSILON = 1e-4
"""What an expert leaves, together, to the labels that it does not know."""
STEEPEST = 600.0
"""Nats by which an expert that a row did not choose counts as better, at most: its slope stays finite."""
DEVIATION = 0.02
"""Of a fresh head's weights, as of BERT's and Llama's own."""


@dataclass(frozen=True)
class Shape:
    """What a head is built by: its labels in the order of its logits, and whether it has a layer before them.

    `dense`: x -> tanh(W x + b) comes first, as in the heads of RoBERTa. `bias`: whether logits have one; a Llama's have
    none.
    """

    labels: tuple[str, ...]
    dense: bool = False
    bias: bool = True


class Head(nn.Module):
    """States -> a logit for each label of one task."""

    def __init__(self, shape: Shape, width: int):
        super().__init__()
        self.shape = shape
        self.dense = nn.Linear(width, width) if shape.dense else None
        self.out = nn.Linear(width, len(shape.labels), bias=shape.bias)

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n c"]:
        return self.out(x if self.dense is None else self.dense(x).tanh())

    @staticmethod
    def fresh(shape: Shape, width: int, generator: torch.Generator) -> "Head":
        """Weights normal with deviation 0.02, biases 0."""
        head = Head(shape, width)
        with torch.no_grad():
            for weight in head.parameters():
                weight.normal_(0, DEVIATION, generator=generator) if weight.ndim == 2 else weight.zero_()
        return head

    @property
    def num_parameters(self) -> int:
        return sum(weight.numel() for weight in self.parameters())


def usual_pool(body: Encoder | Decoder) -> Pool:
    """What transformers' models for sequence classification do: an encoder's first token, a decoder's last."""
    return body.config.label_head.pool


def usual_shape(body: Encoder | Decoder, pool: Pool, labels: tuple[str, ...]) -> Shape:
    """The head that transformers would give a base: for a first token RoBERTa's has a layer, BERT's in its pooler.

    Where another state is read, one matrix.
    """
    usual = body.config.label_head
    return Shape(labels, usual.dense and pool == "first", usual.bias)


class Classifier(nn.Module):
    """A base with adapters in its linears, and the head of each expert, in the same order.

    `pool` makes one state of a row: `first`, of its first token, through BERT's pooler where the base has one; `last`,
    of its last token; or the `mean` over its tokens. Padding never counts.

    Labels of all experts are one space, `expert/label`. With p(y | e) the softmax of an expert's head over its own c of
    g labels, w the weights of a row, and epsilon = 1e-4:

        p(y) = sum_e w_e q_e(y) + (1 - sum_e w_e) / g
        q_e(y) = (1 - epsilon) p(y | e) of its own labels, epsilon / (g - c) of the others; p(y | e) where it has all

    A row that is sent to the wrong expert is therefore a wrong answer and never an infinite loss.
    """

    def __init__(self, body: Encoder | Decoder, heads: Mapping[str, Head], pool: Pool):
        super().__init__()
        self.body, self.pool = body, pool
        self.experts = tuple(heads)
        self.heads = nn.ModuleList(heads.values())
        self.labels = tuple(f"{name}/{label}" for name, head in heads.items() for label in head.shape.labels)
        counts = [len(head.shape.labels) for head in heads.values()]
        self.starts = [sum(counts[:place]) for place in range(len(counts))]

    def forward(self, rows: Prompts, gates: Gates) -> Float[Tensor, "b g"]:
        """Log-probabilities over all labels: finite, whatever the gates."""
        return self.mixed(self.state(rows, gates), gates)

    def state(self, rows: Prompts, gates: Gates) -> Float[Tensor, "b d"]:
        """What the heads read of each row."""
        real, body = rows.real, self.body
        x = body.top(body.blocks(body.embed(rows.ids, rows.types), range(len(body.layers)), gates, real))
        if self.pool == "mean":
            return (x * real[..., None]).sum(1) / rows.lengths[:, None]
        if self.pool == "last":
            return x[torch.arange(len(x), device=x.device), rows.lengths - 1]
        return body.first(x, gates)

    def mixed(self, states: Float[Tensor, "b d"], gates: Gates) -> Float[Tensor, "b g"]:
        """The formula above; a head without a row is not computed."""
        gates, (b, _), g = require(gates, states), states.shape, len(self.labels)
        left = 1 - gates.weights.sum(1).double()
        terms, weights = [states.new_full((b, g), -math.log(g)).double()], [left.where(left > 1e-6, 0)]
        for expert, rows, own in gates.groups():
            known = self.smoothed(expert, self.heads[expert](states[rows])).double()
            terms.append(known.new_full((b, g), -math.inf).index_copy(0, rows, known))
            weights.append(left.new_zeros(b).index_copy(0, rows, own.double()))
        logs, shares = torch.stack(terms), torch.stack(weights)[..., None]
        # Divided by the largest that counts: neither a sum of tiny numbers nor the slope at a weight of 0 is infinite.
        largest = logs.detach().masked_fill(shares == 0, -math.inf).amax(0)
        ratios = (logs - largest).clamp_max(STEEPEST).exp()
        return ((shares * ratios).sum(0).log() + largest).to(states)

    def smoothed(self, expert: int, logits: Float[Tensor, "n c"]) -> Float[Tensor, "n g"]:
        """Log q_e over all labels."""
        (n, c), g = logits.shape, len(self.labels)
        own = logits.log_softmax(-1)
        if c == g:
            return own
        others = own.new_full((n, g), math.log(EPSILON / (g - c)))
        places = torch.arange(self.starts[expert], self.starts[expert] + c, device=own.device)
        return others.index_copy(1, places, own + math.log1p(-EPSILON))


@dataclass(frozen=True)
class Answers:
    """What a mixture says of n rows: who was chosen, and the log-probability of every label."""

    routing: Routing
    log_probabilities: Float[Tensor, "n g"]


class ClassifierMixture(nn.Module):
    """A classifier whose experts a router chooses, once a row, from a pass of the base."""

    def __init__(self, classifier: Classifier, decider: Decider):
        super().__init__()
        self.classifier, self.decider, self.router = classifier, decider, decider.router

    @property
    def names(self) -> tuple[str, ...]:
        """The experts, in the order of the router and of the heads."""
        return self.classifier.experts

    def route(self, rows: Prompts) -> Routing:
        """Decide for each row, by itself."""
        return self.decider.decide(rows)

    def classify(self, rows: Prompts, forced: Routing | None = None) -> Answers:
        """Answer each row; `forced`: who does, in the router's place."""
        routing = self.route(rows) if forced is None else forced
        dtype = next(self.classifier.heads.parameters()).dtype
        return Answers(routing, self.classifier(rows, Gates.of(routing.weights.to(dtype))))
