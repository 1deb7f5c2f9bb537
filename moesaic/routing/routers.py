"""Routers: feature -> one logit per expert. Small modules whose tensors are all they know.

Nothing here reads models, trains or selects. A row of -inf logits means that no expert speaks up: it abstains.
"""

import re
from abc import abstractmethod
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from moesaic.errors import RecipeError
from moesaic.routing.states import Features, States


@runtime_checkable
class Router(Protocol):
    """What decides: features of n prompts in, logits (n, e) out."""

    def __call__(self, features: Features) -> Float[Tensor, "n e"]: ...

    @property
    def num_parameters(self) -> int:
        """How many numbers were trained to decide; 0 where none were."""

    @property
    def num_encoder_parameters(self) -> int:
        """How many numbers an encoder has that the router reads; 0 where it reads none."""


class TrainedRouter(nn.Module):
    """A router that is stored: its tensors, and the arguments that build it anew."""

    @property
    @abstractmethod
    def shape(self) -> dict[str, Any]: ...

    @property
    def num_parameters(self) -> int:
        return sum(weight.numel() for weight in self.parameters())

    @property
    def num_encoder_parameters(self) -> int:
        return 0


class KeywordRouter(TrainedRouter):
    """Counts of each expert's words in the text; a text without any of them abstains.

    Words match whole and without regard to case: 'hi' is not in 'this'.
    """

    def __init__(self, words: list[list[str]]):
        super().__init__()
        self.words = words
        self.patterns = [
            re.compile("|".join(rf"(?<!\w){re.escape(word)}(?!\w)" for word in some) or r"(?!)", re.IGNORECASE)
            for some in words
        ]

    @property
    def shape(self) -> dict[str, Any]:
        return {"words": self.words}

    def forward(self, features: list[str]) -> Float[Tensor, "n e"]:
        counts = torch.tensor([[float(len(p.findall(text))) for p in self.patterns] for text in features])
        return counts.masked_fill(counts.sum(-1, keepdim=True) == 0, float("-inf"))


class CentroidRouter(TrainedRouter):
    """Cosine to the mean of each expert's examples, after subtracting what all of them share."""

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

    def forward(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n e"]:
        cosine = F.normalize(features - self.centre, dim=-1) @ F.normalize(self.centroids, dim=-1).t()
        return cosine / self.temperature


class LayeredRouter(TrainedRouter):
    """What routers that are trained by gradient share: features are standardised, logits divided by a temperature.

    `noise` is for training alone (see `exploration`), and no part of deciding: from the mean of a prompt's states,
    standardised, to how far each logit is spread, before the softplus.
    """

    mean: Tensor
    deviation: Tensor
    temperature: Tensor
    outer: nn.Linear
    noise: nn.Linear | None

    @property
    def options(self) -> dict[str, Any]:
        """Of the arguments, those of later versions, where they are not what they were before there was a choice."""
        return ({} if self.outer.bias is not None else {"bias": False}) | ({"noise": True} if self.noise else {})


class MLPRouter(LayeredRouter):
    """Standardised features through hidden layers of the given sizes; with none of them it is a linear router."""

    def __init__(
        self,
        num_features: int,
        num_experts: int,
        hidden: list[int],
        dropout: float = 0.0,
        bias: bool = True,
        noise: bool = False,
    ):
        super().__init__()
        self.hidden = hidden
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("deviation", torch.ones(num_features))
        self.register_buffer("temperature", torch.ones(()))
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
    """A prompt's tokens pooled by what learned queries attend to: one query a head, no other mixing of tokens.

    x = relu(W s + b) of each standardised state s; each head's query q scores every token by q . (K x) / sqrt(w / h),
    and the softmax of that over the prompt's own tokens weighs their V x; the heads side by side give the logits
    through a matrix. It is multi-head attention (arXiv 1706.03762, section 3.2.2) with one query for all prompts, less
    the two products that it makes superfluous: those of the query and of what comes out.
    """

    def __init__(
        self, num_features: int, num_experts: int, width: int, heads: int, dropout: float = 0.0, noise: bool = False
    ):
        super().__init__()
        if width % heads:
            raise RecipeError(
                "heads share the width evenly", field="heads", expected=f"a divisor of {width}", got=heads
            )
        self.heads = heads
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("deviation", torch.ones(num_features))
        self.register_buffer("temperature", torch.ones(()))
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
        """What the heads found in each prompt, side by side."""
        x = torch.relu(self.inner((features.values - self.mean) / self.deviation))
        keys, values = (part(x).unflatten(-1, self.query.shape) for part in (self.key, self.value))
        shares = features.shares((keys * self.query).sum(-1) * self.query.shape[1] ** -0.5)
        return features.added(shares[..., None] * values).flatten(1)


class ArrowRouter(TrainedRouter):
    """How much more than usual a prompt reacts to what each expert acts on: made from weights, without any prompts.

    Arrow (arXiv 2405.11157): an expert's prototype at a linear is the unit direction v of inputs that its change of the
    weights acts on most, and |x . v| says how much x is its own. Here the mean over a prompt decides, once for all
    layers, and each mean is standardised by what it is on texts of the base: neither a large adapter wins by its size
    nor one whose direction is common to all texts.
    """

    mean: Tensor
    deviation: Tensor
    adapts: Tensor
    spread: Tensor

    def __init__(self, widths: dict[str, int], num_experts: int):
        super().__init__()
        self.widths, self.num_experts = widths, num_experts
        for place, width in enumerate(widths.values()):
            self.register_buffer(f"prototypes_{place}", torch.zeros(num_experts, width))
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
        """The directions that are to be looked for in the inputs of each linear, by its path."""
        return {path: self.get_buffer(f"prototypes_{place}") for place, path in enumerate(self.widths)}

    def forward(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n e"]:
        return self.reaction(features) / self.spread

    def reaction(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n e"]:
        """Mean over the linears that an expert adapts of the standardised projections; features are linear-major."""
        scores = (features.unflatten(-1, self.mean.shape) - self.mean) / self.deviation
        return (scores * self.adapts).sum(1) / self.adapts.sum(0)


ROUTERS: dict[str, type[TrainedRouter]] = {
    "keyword": KeywordRouter,
    "centroid": CentroidRouter,
    "linear": MLPRouter,
    "mlp": MLPRouter,
    "attention": AttentionRouter,
    "arrow": ArrowRouter,
}
