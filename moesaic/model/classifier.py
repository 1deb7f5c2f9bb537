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
from moesaic.hardware import exact
from moesaic.model.deciding import Decider
from moesaic.model.decoder import Decoder
from moesaic.model.encoder import Encoder
from moesaic.model.features import Prompts, pooled
from moesaic.routing import Gates, Routing, require

EPSILON = 1e-4  # probability of an expert for all labels of other tasks together
STEEPEST = 600.0  # nats that an expert of weight 0 may be ahead of the chosen ones: its slope stays finite
DEVIATION = 0.02  # of a fresh head's weights, as in BERT and Llama


@dataclass(frozen=True)
class Shape:
    """The labels of a head, in the order of its logits, and its layers.

    `dense`: x -> tanh(W x + b) comes first, as in RoBERTa. `bias`: the logits have one, unlike Llama's.
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
        x = x.to(self.out.weight.dtype)
        return self.out(x if self.dense is None else self.dense(x).tanh())

    @staticmethod
    def fresh(shape: Shape, width: int, generator: torch.Generator) -> "Head":
        head = Head(shape, width)
        with torch.no_grad():
            for weight in head.parameters():
                weight.normal_(0, DEVIATION, generator=generator) if weight.ndim == 2 else weight.zero_()
        return head

    @property
    def num_parameters(self) -> int:
        return sum(weight.numel() for weight in self.parameters())


def usual_pool(body: Encoder | Decoder) -> Pool:
    """The pool of transformers' models for sequence classification: an encoder's first token, a decoder's last."""
    return body.config.label_head.pool


def usual_shape(body: Encoder | Decoder, pool: Pool, labels: tuple[str, ...]) -> Shape:
    """The head of transformers' models for sequence classification; one matrix where the pool is not `first`."""
    usual = body.config.label_head
    return Shape(labels, usual.dense and pool == "first", usual.bias)


class Classifier(nn.Module):
    """A base with adapters in its linears, and the head of each expert, in the same order.

    `pool`: the state of a row, of its `first` token (through a pooler if the base has one), its `last`, or the `mean`
    over its tokens, without padding. The labels of all experts form one space, `expert/label`. With p(y | e) the
    softmax of an expert's head over its own c of g labels, w the weights of a row, and epsilon = 1e-4:

        p(y) = sum_e w_e q_e(y) + (1 - sum_e w_e) / g
        q_e(y) = (1 - epsilon) p(y | e) of its own labels, epsilon / (g - c) of the others; p(y | e) where it has all

    so that a row on the wrong expert has a finite loss.
    """

    def __init__(self, body: Encoder | Decoder, heads: Mapping[str, Head], pool: Pool):
        super().__init__()
        self.body, self.pool = body, pool
        self.experts = tuple(heads)
        self.heads = nn.ModuleList(heads.values())
        self.labels = tuple(f"{name}/{label}" for name, head in heads.items() for label in head.shape.labels)
        counts = [len(head.shape.labels) for head in heads.values()]
        self.starts = [sum(counts[:place]) for place in range(len(counts))]

    @property
    def device(self) -> torch.device:
        return next(self.heads.parameters()).device

    def forward(self, rows: Prompts, gates: Gates) -> Float[Tensor, "b g"]:
        """Log-probabilities over all labels: finite, whatever the gates."""
        return self.mixed(self.state(rows, gates), gates)

    def state(self, rows: Prompts, gates: Gates) -> Float[Tensor, "b d"]:
        """The pooled state of each row, in float32 at least, which the heads read."""
        real, body = rows.real, self.body
        x = body.top(body.blocks(body.embed(rows.ids, rows.types), range(len(body.layers)), gates, real))
        found = body.first(x, gates) if self.pool == "first" else pooled(x, rows.lengths, self.pool)
        return found.to(exact(found.dtype))

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
        # Dividing by the largest term of positive weight keeps tiny sums and the slope at a weight of 0 finite.
        largest = logs.detach().masked_fill(shares == 0, -math.inf).amax(0)
        ratios = (logs - largest).clamp_max(STEEPEST).exp()
        return ((shares * ratios).sum(0).log() + largest).to(torch.promote_types(states.dtype, torch.float32))

    def smoothed(self, expert: int, logits: Float[Tensor, "n c"]) -> Float[Tensor, "n g"]:
        (n, c), g = logits.shape, len(self.labels)
        own = logits.log_softmax(-1)
        if c == g:
            return own
        others = own.new_full((n, g), math.log(EPSILON / (g - c)))
        places = torch.arange(self.starts[expert], self.starts[expert] + c, device=own.device)
        return others.index_copy(1, places, own + math.log1p(-EPSILON))


@dataclass(frozen=True)
class Answers:
    """A mixture's answers to n rows: the decisions, and the log-probability of every label."""

    routing: Routing
    log_probabilities: Float[Tensor, "n g"]


class ClassifierMixture(nn.Module):
    """A classifier with a router that chooses the experts of each row once, from a pass of the base."""

    def __init__(self, classifier: Classifier, decider: Decider):
        super().__init__()
        self.classifier, self.decider, self.router = classifier, decider, decider.router

        self.names = classifier.experts

    def route(self, rows: Prompts) -> Routing:
        return self.decider.decide(rows)

    def classify(self, rows: Prompts, forced: Routing | None = None) -> Answers:
        """Answer each row; `forced` replaces the router's decisions."""
        routing = self.route(rows) if forced is None else forced
        dtype = next(self.classifier.heads.parameters()).dtype
        return Answers(routing, self.classifier(rows, Gates.of(routing.weights.to(dtype))))
