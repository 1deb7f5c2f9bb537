"""Routers: feature -> one logit per expert, by small modules.

A row of -inf logits abstains. Knows nothing about models, training or selection.
"""

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from moesaic.errors import RecipeError
from moesaic.ops.host import to_device
from moesaic.routing.states import Features, States


@runtime_checkable
class Router(Protocol):
    """A function from the features of n prompts to logits (n, e)."""

    def __call__(self, features: Features) -> Float[Tensor, "n e"]: ...

    @property
    def num_parameters(self) -> int:
        """Number of trained parameters."""

    @property
    def num_encoder_parameters(self) -> int:
        """Number of parameters of the encoder that the router reads; 0 without an encoder."""


@dataclass(frozen=True)
class Node:
    """A decision inside a router between sets of experts: `router` gives one logit for each set in `outcomes`."""

    router: "TrainedRouter"
    outcomes: Sequence[Sequence[int]]


class TrainedRouter(nn.Module):
    """A router that can be stored as tensors and the arguments that build it."""

    @property
    @abstractmethod
    def shape(self) -> dict[str, Any]: ...

    @property
    def nodes(self) -> list[Node]:
        """The decisions that a decision consists of, each with its own temperature; none without a temperature."""
        return []

    @property
    def hottest(self) -> float:
        """The highest temperature of a node."""
        return max(node.router.get_buffer("temperature").item() for node in self.nodes)

    @property
    def num_parameters(self) -> int:
        return sum(weight.numel() for weight in self.parameters())

    @property
    def num_encoder_parameters(self) -> int:
        return 0


class KeywordRouter(TrainedRouter):
    """Counts each expert's words in the text; a text without any of them abstains.

    Only whole words match, in upper or lower case: 'hi' is not in 'this'.
    `first`: instead of counting, choose the first expert with a word anywhere in the text, also inside other words
    ('hi' is in 'this'); an expert without words takes the texts that no other expert takes.
    """

    def __init__(self, words: list[list[str]], first: bool = False):
        super().__init__()
        self.words, self.first = words, first
        self.patterns = [
            re.compile("|".join(rf"(?<!\w){re.escape(word)}(?!\w)" for word in some) or r"(?!)", re.IGNORECASE)
            for some in words
        ]

    @property
    def shape(self) -> dict[str, Any]:
        return {"words": self.words} | ({"first": True} if self.first else {})

    def forward(self, features: list[str]) -> Float[Tensor, "n e"]:
        if self.first:
            chosen = [self.match(text) for text in features]
            right = torch.tensor([[one == expert for expert in range(len(self.words))] for one in chosen])
            return torch.zeros(right.shape).masked_fill(~right, float("-inf"))
        counts = torch.tensor([[float(len(p.findall(text))) for p in self.patterns] for text in features])
        return counts.masked_fill(counts.sum(-1, keepdim=True) == 0, float("-inf"))

    def match(self, text: str) -> int | None:
        """The first expert with a word in the text, else the first without words; None: there is none."""
        lower = text.lower()
        found = (e for e, some in enumerate(self.words) if any(word.lower() in lower for word in some))
        return next(found, next((e for e, some in enumerate(self.words) if not some), None))


class CentroidRouter(TrainedRouter):
    """Cosine similarity to the mean of each expert's examples, after subtracting the centre of all examples."""

    centre: Tensor
    centroids: Tensor
    temperature: Tensor

    def __init__(self, num_features: int, num_experts: int):
        super().__init__()
        self.register_buffer("centre", torch.zeros(num_features))
        self.register_buffer("centroids", torch.zeros(num_experts, num_features))
        self.register_buffer("temperature", torch.ones(()))

    @property
    def shape(self) -> dict[str, Any]:
        return {"num_features": self.centroids.shape[1], "num_experts": self.centroids.shape[0]}

    @property
    def nodes(self) -> list[Node]:
        return [Node(self, [[expert] for expert in range(len(self.centroids))])]

    def forward(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n e"]:
        cosine = F.normalize(features - self.centre, dim=-1) @ F.normalize(self.centroids, dim=-1).t()
        return cosine / self.temperature


class LayeredRouter(TrainedRouter):
    """A router that is trained by gradient: it standardises features and divides logits by a temperature.

    Only training uses `noise` (see `exploration`): it maps the standardised mean of a prompt's states to the spread of
    each logit, before the softplus.
    """

    mean: Tensor
    deviation: Tensor
    temperature: Tensor
    outer: nn.Linear
    noise: nn.Linear | None

    def __init__(self, num_features: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("deviation", torch.ones(num_features))
        self.register_buffer("temperature", torch.ones(()))

    @property
    def options(self) -> dict[str, Any]:
        """Arguments that were added in later versions, where they differ from their defaults."""
        return ({} if self.outer.bias is not None else {"bias": False}) | ({"noise": True} if self.noise else {})

    @property
    def nodes(self) -> list[Node]:
        return [Node(self, [[expert] for expert in range(self.outer.out_features)])]


class MLPRouter(LayeredRouter):
    """Standardised features through hidden layers of the given sizes; without hidden layers a linear router."""

    def __init__(
        self,
        num_features: int,
        num_experts: int,
        hidden: list[int],
        dropout: float = 0.0,
        bias: bool = True,
        noise: bool = False,
    ):
        super().__init__(num_features)
        self.hidden = hidden
        sizes = [num_features, *hidden]
        self.inner = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(sizes))
        self.outer = nn.Linear(sizes[-1], num_experts, bias=bias)
        self.noise = nn.Linear(num_features, num_experts) if noise else None
        self.dropout = nn.Dropout(dropout)

    @property
    def shape(self) -> dict[str, Any]:
        sizes = {"num_features": len(self.mean), "num_experts": self.outer.out_features, "hidden": self.hidden}
        return sizes | self.options

    def forward(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n e"]:
        x = (features - self.mean) / self.deviation
        for layer in self.inner:
            x = self.dropout(F.gelu(layer(x)))
        return self.outer(x) / self.temperature


class AttentionRouter(LayeredRouter):
    """A prompt's tokens pooled by attention with one learned query a head.

    x = relu(W s + b) of each standardised state s; each head's query q scores every token by q . (K x) / sqrt(w / h),
    and the softmax of the scores over the prompt's own tokens weighs their V x; a matrix maps the concatenated heads to
    the logits. This is multi-head attention (arXiv 1706.03762, section 3.2.2) with one query for all prompts, without
    the projections of query and output, which the learned query and the last matrix include.
    """

    def __init__(
        self, num_features: int, num_experts: int, width: int, heads: int, dropout: float = 0.0, noise: bool = False
    ):
        super().__init__(num_features)
        if width % heads:
            what, expected = "the number of heads does not divide the width", f"a divisor of {width}"
            raise RecipeError(what, field="heads", expected=expected, got=heads)
        self.heads = heads
        self.inner = nn.Linear(num_features, width)
        self.query = nn.Parameter(torch.randn(heads, width // heads))
        self.key, self.value = nn.Linear(width, width, bias=False), nn.Linear(width, width)
        self.outer = nn.Linear(width, num_experts)
        self.noise = nn.Linear(num_features, num_experts) if noise else None
        self.dropout = nn.Dropout(dropout)

    @property
    def shape(self) -> dict[str, Any]:
        sizes = {"num_features": len(self.mean), "num_experts": self.outer.out_features}
        return {**sizes, "width": self.inner.out_features, "heads": self.heads, **self.options}

    def forward(self, features: States) -> Float[Tensor, "n e"]:
        return self.outer(self.dropout(self.pooled(features))) / self.temperature

    def pooled(self, features: States) -> Float[Tensor, "n w"]:
        x = torch.relu(self.inner((features.values - self.mean) / self.deviation))
        keys, values = (part(x).unflatten(-1, self.query.shape) for part in (self.key, self.value))
        shares = features.shares((keys * self.query).sum(-1) * self.query.shape[1] ** -0.5)
        return features.added(shares[..., None] * values).flatten(1)


class TreeRouter(TrainedRouter):
    """A router between groups of experts, and one inside each group of several; their probabilities multiply.

    The logits are log-probabilities: log p(expert) = log p(group) + log p(expert | group). Every node has its own
    temperature, so products of calibrated probabilities stay calibrated. `groups`: indices of experts.
    """

    noise = None

    def __init__(
        self, num_features: int, num_experts: int, groups: list[list[int]], hidden: list[int], dropout: float = 0.0
    ):
        super().__init__()
        flat = [*chain(*groups)]
        if len(groups) < 2 or not all(groups) or sorted(flat) != [*range(len(flat))] or len(flat) != num_experts:
            expected = f"each of {num_experts} experts in one of several groups"
            raise RecipeError("groups do not divide the experts", field="groups", expected=expected, got=groups)
        self.groups = groups
        self.columns = [flat.index(expert) for expert in range(num_experts)]
        self.between = MLPRouter(num_features, len(groups), hidden, dropout)
        several = [members for members in groups if len(members) > 1]
        self.inside = nn.ModuleList(MLPRouter(num_features, len(members), hidden, dropout) for members in several)

    @property
    def shape(self) -> dict[str, Any]:
        sizes = self.between.shape
        own = {"num_experts": len(self.columns), "groups": self.groups}
        return {"num_features": sizes["num_features"], **own, "hidden": sizes["hidden"]}

    @property
    def nodes(self) -> list[Node]:
        several = [[[expert] for expert in members] for members in self.groups if len(members) > 1]
        inside = (cast(MLPRouter, one) for one in self.inside)
        return [Node(self.between, self.groups), *(Node(*one) for one in zip(inside, several, strict=True))]

    def forward(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n e"]:
        inside = iter(self.inside)
        of_groups = self.between(features).log_softmax(-1).split(1, -1)
        parts = [
            group + next(inside)(features).log_softmax(-1) if len(members) > 1 else group
            for group, members in zip(of_groups, self.groups, strict=True)
        ]
        every = torch.cat(parts, -1)
        return every.index_select(-1, to_device(self.columns, every.device))


class ArrowRouter(TrainedRouter):
    """A router made from weights without prompts: how strongly a prompt projects on each expert's prototypes.

    Arrow (arXiv 2405.11157): an expert's prototype at a linear is the unit direction v of inputs that its change of the
    weights amplifies most, and |x . v| is the score of x. Here the mean over a prompt decides, once for all layers, and
    each mean is standardised by its values on texts of the base: neither a large adapter wins by its size nor one whose
    direction is common to all texts.
    """

    mean: Tensor
    deviation: Tensor
    adapts: Tensor
    spread: Tensor

    def __init__(self, widths: dict[str, int], num_experts: int):
        super().__init__()
        self.widths, self.num_experts = widths, num_experts
        for index, width in enumerate(widths.values()):
            self.register_buffer(f"prototypes_{index}", torch.zeros(num_experts, width))
        shape = (len(widths), num_experts)
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("deviation", torch.ones(shape))
        self.register_buffer("adapts", torch.ones(shape))  # 0 where an expert does not touch a linear
        self.register_buffer("spread", torch.ones(num_experts))

    @property
    def shape(self) -> dict[str, Any]:
        return {"widths": self.widths, "num_experts": self.num_experts}

    @property
    def prototypes(self) -> Mapping[str, Float[Tensor, "e i"]]:
        """The experts' directions in the inputs of each linear, by its path."""
        return {path: self.get_buffer(f"prototypes_{index}") for index, path in enumerate(self.widths)}

    def forward(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n e"]:
        return self.reaction(features) / self.spread

    def reaction(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n e"]:
        """Average the standardised projections over the linears that an expert adapts; features are linear-major."""
        scores = (features.unflatten(-1, self.mean.shape) - self.mean) / self.deviation
        return (scores * self.adapts).sum(1) / self.adapts.sum(0)


class GatesRouter(TrainedRouter):
    """A matrix in each slot of a decoder, which routes every token there: the k largest of softmax(rows x).

    About a whole prompt the slots have decided already: the features are the shares of each expert in its tokens.
    `widths`: the size of the states in each slot, by its path.
    """

    def __init__(self, widths: dict[str, int], num_experts: int, k: int, renormalise: bool = True):
        super().__init__()
        if not 1 <= k <= num_experts:
            expected = f"1 to {num_experts} experts"
            raise RecipeError("a token cannot choose so many", field="k", expected=expected, got=k)
        self.widths, self.num_experts, self.k, self.renormalise = widths, num_experts, k, renormalise
        self.rows = nn.ParameterList(torch.zeros(num_experts, width) for width in widths.values())

    @staticmethod
    def of(rows: Mapping[str, Float[Tensor, "e _"]], k: int, renormalise: bool = True) -> "GatesRouter":
        """The router with these rows, by the paths of their slots."""
        experts = len(next(iter(rows.values())))
        router = GatesRouter({path: some.shape[1] for path, some in rows.items()}, experts, k, renormalise)
        with torch.no_grad():
            for own, some in zip(router.rows, rows.values(), strict=True):
                own.copy_(some)
        return router

    @property
    def shape(self) -> dict[str, Any]:
        return {"widths": self.widths, "num_experts": self.num_experts, "k": self.k, "renormalise": self.renormalise}

    @property
    def by_path(self) -> dict[str, Float[Tensor, "e _"]]:
        return dict(zip(self.widths, self.rows, strict=True))

    def forward(self, features: Float[Tensor, "n e"]) -> Float[Tensor, "n e"]:
        return features.log()


ROUTERS: dict[str, type[TrainedRouter]] = {
    "keyword": KeywordRouter,
    "centroid": CentroidRouter,
    "linear": MLPRouter,
    "mlp": MLPRouter,
    "attention": AttentionRouter,
    "tree": TreeRouter,
    "arrow": ArrowRouter,
    "gates": GatesRouter,
}
