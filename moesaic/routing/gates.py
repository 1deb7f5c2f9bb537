"""Routing (a decision that comes up) and Gates (decisions grouped by expert, that go down).

Both are values: nothing here is parked on a module, and nothing here knows how a decision was made.
n rows, e experts, m (row, expert) pairs with a weight.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moesaic.errors import GatesError

ROUNDING = 1e-6
"""How far from 1 weights may sum that are meant to: decisions are made in float32."""


@dataclass(frozen=True)
class Routing:
    """What a router decided for n rows: the logits it gave and the weights selected from them.

    A row whose weights are all 0 abstains: it is answered by the base alone.
    """

    weights: Float[Tensor, "n e"]
    logits: Float[Tensor, "n e"]

    @property
    def best(self) -> Int[Tensor, " n"]:
        """The expert of largest weight in each row, -1 where the row abstains."""
        return torch.where(self.weights.sum(-1) > 0, self.weights.argmax(-1), -1)

    def __getitem__(self, rows: slice | Tensor) -> "Routing":
        return Routing(self.weights[rows], self.logits[rows])

    def put(self, rows: Int[Tensor, " g"], new: "Routing") -> "Routing":
        """The same decisions but for these rows, which are decided anew."""
        return Routing(self.weights.index_copy(0, rows, new.weights), self.logits.index_copy(0, rows, new.logits))

    @staticmethod
    def cat(parts: list["Routing"]) -> "Routing":
        return Routing(torch.cat([p.weights for p in parts]), torch.cat([p.logits for p in parts]))


@dataclass(frozen=True)
class Gates:
    """The weights of n rows, and the same as m pairs sorted by expert so that layers compute only what was chosen.

    Build them once when the rows of the batch change; all layers share them.
    """

    weights: Float[Tensor, "n e"]
    rows: Int[Tensor, " m"]
    experts: Int[Tensor, " m"]
    values: Float[Tensor, " m"]
    sizes: tuple[int, ...] | None  # pairs of each expert, known to the host; None: only the device knows
    each: tuple[Int[Tensor, " n"], Float[Tensor, " n"]] | None  # every row's expert and its weight, if each has one
    beside: Mapping[tuple[int, ...], "Gates"] = field(default_factory=dict, repr=False, compare=False)  # see `ready`

    @staticmethod
    def of(weights: Float[Tensor, "n e"]) -> "Gates":
        """Group the rows by expert. Reads the weights on the host: for decisions made once a request."""
        experts, rows = weights.detach().t().nonzero(as_tuple=True)
        sizes = tuple(torch.bincount(experts, minlength=weights.shape[1]).tolist())
        alone = len(rows) == len(weights) == len(rows.unique())
        values, order = weights[rows, experts], rows.argsort()
        return Gates(weights, rows, experts, values, sizes, (experts[order], values[order]) if alone else None)

    @staticmethod
    def dense(weights: Float[Tensor, "n e"]) -> "Gates":
        """Every expert for every row, those of weight 0 too: a gradient then reaches the weights of all of them."""
        n, e = weights.shape
        rows = torch.arange(n, device=weights.device)
        experts = torch.arange(e, device=weights.device).repeat_interleave(n)
        return Gates(weights, rows.repeat(e), experts, weights.t().flatten(), (n,) * e, None)

    @staticmethod
    def of_choices(experts: Int[Tensor, "n k"], values: Float[Tensor, "n k"], num_experts: int) -> "Gates":
        """Group k choices a row without waiting for the device: for decisions made in every layer."""
        order = experts.flatten().argsort(stable=True)
        weights = values.new_zeros(len(experts), num_experts).scatter_add(1, experts, values)
        each = (experts[:, 0], values[:, 0]) if experts.shape[1] == 1 else None
        return Gates(weights, order // experts.shape[1], experts.flatten()[order], values.flatten()[order], None, each)

    @staticmethod
    def one(expert: int, num_rows: int, num_experts: int, like: Tensor) -> "Gates":
        """All rows on one expert with weight 1, in the dtype and on the device of `like`; expert -1: the base."""
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
        """Pairs of each expert, on the device; the sort order makes their cumulative sum the group boundaries."""
        return torch.bincount(self.experts, minlength=self.num_experts)

    @property
    def present(self) -> tuple[int, ...]:
        """The experts that at least one row chose."""
        return tuple(e for e, size in enumerate(self.host_sizes()) if size)

    def host_sizes(self) -> tuple[int, ...]:
        return self.sizes if self.sizes is not None else tuple(self.counts.tolist())

    def groups(self) -> Iterator[tuple[int, Int[Tensor, " g"], Float[Tensor, " g"]]]:
        """Each chosen expert with its rows and their weights; experts that nobody chose do not appear."""
        start = 0
        for expert, size in enumerate(self.host_sizes()):
            if size:
                yield expert, self.rows[start : start + size], self.values[start : start + size]
            start += size

    def with_base(self, experts: tuple[int, ...]) -> "Gates":
        """The weights of these experts and, as the last column, what each row leaves of 1: the base's own share.

        What rounding leaves is none. Where gates are `dense`, with pairs of weight 0, so is what comes out: a gradient
        reaches the weights of those that are not chosen, too. `ready` gates hold the result already.
        """
        if experts in self.beside:
            return self.beside[experts]
        chosen = self.weights[:, list(experts)]
        left = 1 - chosen.sum(-1, keepdim=True)
        rounding = max(ROUNDING, len(experts) * torch.finfo(left.dtype).eps)
        left = left.masked_fill(left.abs() <= rounding, 0.0)
        every = len(self.rows) == self.weights.numel() and bool((self.values == 0).any())
        return (Gates.dense if every else Gates.of)(torch.cat([chosen, left], -1))

    def ready(self, groups: Collection[tuple[int, ...]]) -> "Gates":
        """The same gates with `with_base` computed for these groups of experts: once for all layers and steps."""
        return replace(self, beside={experts: self.with_base(experts) for experts in groups}) if groups else self

    def select(self, rows: Int[Tensor, " g"]) -> "Gates":
        """The gates of some of the rows, in the order given."""
        return Gates.of(self.weights[rows]).ready(self.beside)

    @staticmethod
    def cat(parts: Sequence["Gates"]) -> "Gates":
        """The gates of the rows of several batches."""
        return Gates.of(torch.cat([part.weights for part in parts])).ready(parts[0].beside)


def require(gates: Gates | None, x: Tensor) -> Gates:
    """The gates, checked against the rows of `x`; a routed layer never guesses."""
    if gates is None:
        raise GatesError("a routed layer was called without gates", hint="route first and pass the gates to the model")
    if gates.num_rows != x.shape[0]:
        raise GatesError(
            "the gates belong to another batch",
            expected=f"{x.shape[0]} rows",
            got=f"{gates.num_rows} rows",
            hint="use gates.select(rows) when the batch changes",
        )
    return gates
