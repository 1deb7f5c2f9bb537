"""Routing, the decisions that a router returns, and Gates, the same decisions grouped by expert for the layers.

Both are values: no module stores them, and neither knows how a decision was made.
n rows, e experts, m (row, expert) pairs with a weight.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moesaic.errors import GatesError
from moesaic.ops.host import to_device, to_host

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
        certain = torch.isneginf(self.logits).all(-1)
        return torch.cat([self.logits, self.of_base.masked_fill(certain, 0.0)[:, None]], -1).softmax(-1)

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
        if len(parts) == 1:
            return parts[0]
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
    places: tuple[tuple[int, ...], ...] | None  # rows of each expert on the host; None: only the device knows them
    each: tuple[Int[Tensor, " n"], Float[Tensor, " n"]] | None  # experts and weights if every row has exactly one
    completed: Mapping[tuple[int, ...], "Gates"] = field(default_factory=dict, repr=False, compare=False)  # `ready`
    every: bool = False  # made by `dense`: pairs of weight 0 too

    @staticmethod
    def of(weights: Float[Tensor, "n e"]) -> "Gates":
        """Group the rows by expert. Waits for the device, so call it once a request, not in every layer."""
        return Gates.placed(weights, places_of(to_host(weights), weights.shape[1]))

    @staticmethod
    def placed(weights: Float[Tensor, "n e"], places: Sequence[Sequence[int]]) -> "Gates":
        """Group the rows by expert where the host knows the rows of each; waits for nothing."""
        pairs = [(expert, row) for expert, own in enumerate(places) for row in own]
        order = sorted(range(len(pairs)), key=lambda pair: pairs[pair][1])
        alone = [pairs[pair][1] for pair in order] == [*range(len(weights))]
        known = [[expert for expert, _ in pairs], [row for _, row in pairs], order]
        experts, rows, by_row = to_device(known, weights.device)
        values = weights[rows, experts]
        each = (experts[by_row], values[by_row]) if alone else None
        return Gates(weights, rows, experts, values, tuple(map(tuple, places)), each)

    @staticmethod
    def dense(weights: Float[Tensor, "n e"]) -> "Gates":
        """Pair every row with every expert, also those of weight 0, so that a gradient reaches all weights."""
        n, e = weights.shape
        rows = torch.arange(n, device=weights.device)
        experts = torch.arange(e, device=weights.device).repeat_interleave(n)
        places = (tuple(range(n)),) * e
        return Gates(weights, rows.repeat(e), experts, weights.t().flatten(), places, None, every=True)

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
        return Gates.placed(weights, [range(num_rows) if one == expert else () for one in range(num_experts)])

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
    def sizes(self) -> tuple[int, ...] | None:
        """Pairs of each expert on the host; None: only the device knows them."""
        return None if self.places is None else tuple(map(len, self.places))

    @property
    def present(self) -> tuple[int, ...]:
        return tuple(e for e, size in enumerate(self.host_sizes()) if size)

    def host_sizes(self) -> tuple[int, ...]:
        return self.sizes if self.sizes is not None else tuple(to_host(self.counts))

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
        shares = with_rest(self.weights, experts)
        every = self.every and any(0 in row for row in to_host(self.weights))
        return (Gates.dense if every else Gates.of)(shares)

    def ready(self, groups: Collection[tuple[int, ...]]) -> "Gates":
        """Cache `with_base` of these groups of experts, for all layers and steps."""
        return replace(self, completed={experts: self.with_base(experts) for experts in groups}) if groups else self

    def to(self, like: Tensor) -> "Gates":
        """The same gates in the type and on the device of `like`."""
        if (self.weights.dtype, self.weights.device) == (like.dtype, like.device):
            return self
        weights = self.weights.to(like, non_blocking=True)
        made = Gates.of(weights) if self.places is None else Gates.placed(weights, self.places)
        completed = {experts: some.to(like) for experts, some in self.completed.items()}
        return replace(made, completed=completed, every=self.every)

    def select(self, rows: Sequence[int]) -> "Gates":
        weights = self.weights.index_select(0, to_device(rows, self.weights.device))
        if self.places is None:
            return Gates.of(weights).ready(self.completed)
        held = [{*own} for own in self.places]
        places = [[place for place, row in enumerate(rows) if row in own] for own in held]
        completed = {experts: some.select(rows) for experts, some in self.completed.items()}
        return replace(Gates.placed(weights, places), completed=completed, every=self.every)

    @staticmethod
    def cat(parts: Sequence["Gates"]) -> "Gates":
        weights, completed = torch.cat([part.weights for part in parts]), parts[0].completed
        known = [part.places for part in parts if part.places is not None]
        if len(known) < len(parts):
            return Gates.of(weights).ready(completed)
        starts = [0, *accumulate(part.num_rows for part in parts)]
        pairs = [*zip(starts, known, strict=False)]
        places = [[start + row for start, own in pairs for row in own[e]] for e in range(weights.shape[1])]
        joined = {experts: Gates.cat([part.with_base(experts) for part in parts]) for experts in completed}
        every = all(part.every for part in parts)
        return replace(Gates.placed(weights, places), completed=joined, every=every)


def places_of(weights: Sequence[Sequence[float]], num_experts: int) -> list[list[int]]:
    """The rows of each expert: those in which its weight is not 0."""
    return [[row for row, own in enumerate(weights) if own[expert]] for expert in range(num_experts)]


def with_rest(weights: Float[Tensor, "n e"], experts: Sequence[int]) -> Float[Tensor, "n s"]:
    """The weights of these experts and, in the last column, 1 minus their sum; remainders within rounding are 0."""
    chosen = weights.index_select(-1, to_device(experts, weights.device))
    left = 1 - chosen.sum(-1, keepdim=True)
    rounding = max(ROUNDING, len(experts) * torch.finfo(left.dtype).eps)
    return torch.cat([chosen, left.masked_fill(left.abs() <= rounding, 0.0)], -1)


def require(gates: Gates | None, x: Tensor) -> Gates:
    """Return the gates if they have one row for each row of `x`; raise GatesError otherwise."""
    if gates is None:
        raise GatesError("a routed layer was called without gates", hint="route first and pass the gates to the model")
    if gates.num_rows != x.shape[0]:
        expected, got = f"{x.shape[0]} rows", f"{gates.num_rows} rows"
        hint = "use gates.select(rows) when the batch changes"
        raise GatesError("the gates belong to another batch", expected=expected, got=got, hint=hint)
    return gates
