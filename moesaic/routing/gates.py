"""Routing, the decisions that a router returns, and Gates, the same decisions grouped by expert for the layers.

Both are values: no module stores them, and neither knows how a decision was made.
n rows, e experts, m (row, expert) pairs with a weight.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moesaic.errors import GatesError

ROUNDING = 1e-6  # tolerance of a sum of weights that should be 1, in float32


@dataclass(frozen=True)
class Routing:
    """Decisions for n rows: the router's logits and the weights selected from them.

    A row whose weights are all 0 abstains: the base alone answers it. `base`: the logit of "none of the experts" beside
    those of the experts; None where nothing judges it.
    """

    weights: Float[Tensor, "n e"]
    logits: Float[Tensor, "n e"]
    base: Float[Tensor, " n"] | None = None

    @property
    def probabilities(self) -> Float[Tensor, "n outcomes"]:
        """The probability of every expert and, last, of the base, which is certain where all logits are -inf."""
        both = torch.cat([self.logits, self.of_base[:, None]], -1)
        silent = torch.isneginf(both).all(-1, keepdim=True)
        sure = torch.zeros_like(both).index_fill(-1, torch.tensor([both.shape[-1] - 1], device=both.device), 1.0)
        return torch.where(silent, sure, both.masked_fill(silent, 0.0).softmax(-1))

    @property
    def of_base(self) -> Float[Tensor, " n"]:
        return self.logits.new_full((len(self.logits),), -torch.inf) if self.base is None else self.base

    @property
    def best(self) -> Int[Tensor, " n"]:
        """Index of the largest weight in each row, -1 where the row abstains."""
        if not self.weights.shape[1]:
            return torch.full((len(self.weights),), -1, device=self.weights.device)
        return torch.where(self.weights.sum(-1) > 0, self.weights.argmax(-1), -1)

    def __getitem__(self, rows: slice | Tensor) -> "Routing":
        return Routing(self.weights[rows], self.logits[rows], self.of_base[rows])

    def put(self, rows: Int[Tensor, " g"], new: "Routing") -> "Routing":
        return Routing(
            self.weights.index_copy(0, rows, new.weights),
            self.logits.index_copy(0, rows, new.logits),
            self.of_base.index_copy(0, rows, new.of_base.to(self.logits)),
        )

    @staticmethod
    def cat(parts: list["Routing"]) -> "Routing":
        weights, logits, base = zip(*((p.weights, p.logits, p.of_base) for p in parts), strict=True)
        return Routing(torch.cat(weights), torch.cat(logits), torch.cat(base))


@dataclass(frozen=True)
class Gates:
    """The weights of n rows, and the same weights as m pairs sorted by expert: layers compute only chosen experts.

    Build them once when the rows of the batch change; all layers share them.
    """

    weights: Float[Tensor, "n e"]
    rows: Int[Tensor, " m"]
    experts: Int[Tensor, " m"]
    values: Float[Tensor, " m"]
    sizes: tuple[int, ...] | None  # pairs of each expert on the host; None: only the device knows them
    each: tuple[Int[Tensor, " n"], Float[Tensor, " n"]] | None  # experts and weights if every row has exactly one
    completed: Mapping[tuple[int, ...], "Gates"] = field(default_factory=dict, repr=False, compare=False)  # `ready`

    @staticmethod
    def of(weights: Float[Tensor, "n e"]) -> "Gates":
        """Group the rows by expert. Copies the weights to the host, so call it once a request, not in every layer."""
        experts, rows = weights.detach().t().nonzero(as_tuple=True)
        sizes = tuple(torch.bincount(experts, minlength=weights.shape[1]).tolist())
        alone = len(rows) == len(weights) == len(rows.unique())
        values, order = weights[rows, experts], rows.argsort()
        return Gates(weights, rows, experts, values, sizes, (experts[order], values[order]) if alone else None)

    @staticmethod
    def dense(weights: Float[Tensor, "n e"]) -> "Gates":
        """Pair every row with every expert, also those of weight 0, so that a gradient reaches all weights."""
        n, e = weights.shape
        rows = torch.arange(n, device=weights.device)
        experts = torch.arange(e, device=weights.device).repeat_interleave(n)
        return Gates(weights, rows.repeat(e), experts, weights.t().flatten(), (n,) * e, None)

    @staticmethod
    def of_choices(experts: Int[Tensor, "n k"], values: Float[Tensor, "n k"], num_experts: int) -> "Gates":
        """Group k choices a row without waiting for the device, so it may be called in every layer."""
        order = experts.flatten().argsort(stable=True)
        weights = values.new_zeros(len(experts), num_experts).scatter_add(1, experts, values)
        each = (experts[:, 0], values[:, 0]) if experts.shape[1] == 1 else None
        return Gates(weights, order // experts.shape[1], experts.flatten()[order], values.flatten()[order], None, each)

    @staticmethod
    def one(expert: int, num_rows: int, num_experts: int, like: Tensor) -> "Gates":
        """Give all rows to one expert with weight 1, in the dtype and on the device of `like`; expert -1: the base."""
        weights = like.new_zeros(num_rows, num_experts)
        if expert >= 0:
            weights[:, expert] = 1.0
        return Gates.of(weights)

    @property
    def num_rows(self) -> int:
        return self.weights.shape[0]

    @property
    def num_experts(self) -> int:
        return self.weights.shape[1]

    @property
    def counts(self) -> Int[Tensor, " e"]:
        """Pairs of each expert, on the device; their cumulative sum gives the boundaries of the groups."""
        return torch.bincount(self.experts, minlength=self.num_experts)

    @property
    def present(self) -> tuple[int, ...]:
        return tuple(e for e, size in enumerate(self.host_sizes()) if size)

    def host_sizes(self) -> tuple[int, ...]:
        return self.sizes if self.sizes is not None else tuple(self.counts.tolist())

    def groups(self) -> Iterator[tuple[int, Int[Tensor, " g"], Float[Tensor, " g"]]]:
        start = 0
        for expert, size in enumerate(self.host_sizes()):
            if size:
                yield expert, self.rows[start : start + size], self.values[start : start + size]
            start += size

    def with_base(self, experts: tuple[int, ...]) -> "Gates":
        """The weights of these experts and, in the last column, 1 minus their sum: the share of the base.

        Remainders within rounding count as 0. `dense` gates give `dense` gates, so that a gradient reaches all weights.
        `ready` gates have the result cached.
        """
        if experts in self.completed:
            return self.completed[experts]
        chosen = self.weights[:, list(experts)]
        left = 1 - chosen.sum(-1, keepdim=True)
        rounding = max(ROUNDING, len(experts) * torch.finfo(left.dtype).eps)
        left = left.masked_fill(left.abs() <= rounding, 0.0)
        every = len(self.rows) == self.weights.numel() and bool((self.values == 0).any())
        return (Gates.dense if every else Gates.of)(torch.cat([chosen, left], -1))

    def ready(self, groups: Collection[tuple[int, ...]]) -> "Gates":
        """Cache `with_base` of these groups of experts, for all layers and steps."""
        return replace(self, completed={experts: self.with_base(experts) for experts in groups}) if groups else self

    def select(self, rows: Int[Tensor, " g"]) -> "Gates":
        return Gates.of(self.weights[rows]).ready(self.completed)

    @staticmethod
    def cat(parts: Sequence["Gates"]) -> "Gates":
        return Gates.of(torch.cat([part.weights for part in parts])).ready(parts[0].completed)


def require(gates: Gates | None, x: Tensor) -> Gates:
    """Return the gates if they have one row for each row of `x`; raise GatesError otherwise."""
    if gates is None:
        raise GatesError("a routed layer was called without gates", hint="route first and pass the gates to the model")
    if gates.num_rows != x.shape[0]:
        expected, got = f"{x.shape[0]} rows", f"{gates.num_rows} rows"
        hint = "use gates.select(rows) when the batch changes"
        raise GatesError("the gates belong to another batch", expected=expected, got=got, hint=hint)
    return gates
