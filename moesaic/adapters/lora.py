"""LoRA experts (arXiv 2106.09685): pairs of thin matrices beside named matrices, applied row by row under Gates.

`attach` wraps a decoder's linears, and the experts of its sparse layers, with the stacked pairs of several experts;
ranks and targets may differ, and missing pairs count as zero. Knows nothing about files, training or routers.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NoReturn

import torch
from jaxtyping import Float
from torch import Tensor, nn

from moesaic.adapters.slots import slots_of
from moesaic.adapters.sparse_experts import HALVES, WHOLE, LowRankExperts, Stack, matrices, place, placed
from moesaic.errors import CompatibilityError
from moesaic.hardware import exact
from moesaic.nn import Linear
from moesaic.nn.sparse import Experts
from moesaic.ops import low_rank
from moesaic.routing import Gates, require

# Up to this many inner columns, two dense GEMMs with a mask beat gathering each row's own pair (one token a row).
MASKED_LIMIT = 128

OF_LORA = "only experts of kind lora adapt the matrices of sparse experts"

Weights = dict[str, Float[Tensor, "o i"]]


@dataclass(frozen=True)
class LoRA:
    """One expert: for each module path, A (r, i) and B (r, o); the change is x A^T B * alpha / r.

    B is the transpose of its form in PEFT, so that stacks of experts multiply without a copy. `rank` and `alpha` are
    those of most modules; pairs of another rank have it in their shape, modules with another alpha have it in `alphas`.
    """

    rank: int
    alpha: float
    pairs: Mapping[str, tuple[Float[Tensor, "r i"], Float[Tensor, "r o"]]]
    alphas: Mapping[str, float] = field(default_factory=dict)

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def rank_of(self, path: str) -> int:
        return self.pairs[path][0].shape[0]

    def scale_of(self, path: str) -> float:
        return self.alphas.get(path, self.alpha) / self.rank_of(path) if path in self.pairs else 0.0

    @property
    def targets(self) -> list[str]:
        return targets_in(self.pairs)

    @property
    def layers(self) -> list[int]:
        return layers_in(self.pairs)

    @property
    def num_parameters(self) -> int:
        return sum(a.numel() + b.numel() for a, b in self.pairs.values())

    @property
    def in_experts(self) -> dict[str, int]:
        """The number of parameters beside sparse experts, by the path of a layer's experts."""
        sizes = {path: a.numel() + b.numel() for path, (a, b) in self.pairs.items()}
        return {
            experts: sum(sizes[path] for paths in names.values() for path in paths.values())
            for experts, names in placed(sizes).items()
        }

    def lora(self) -> "LoRA":
        """Return the adapter itself; adapters of other kinds return their pairs."""
        return self

    def adapt(self, module: nn.Module) -> None:
        """Put the expert into a plain decoder or encoder for training: its pairs become parameters.

        Batches then need the gates of one expert, `Gates.one(0, rows, 1, like)`.
        """
        attach(module, [self])

    def detach(self, module: nn.Module) -> "LoRA":
        """The expert that `adapt` put into a module, with its values now."""
        now = self.held_in(module, 0)
        return replace(now, pairs={path: (a.clone(), b.clone()) for path, (a, b) in now.pairs.items()})

    def held_in(self, module: nn.Module, index: int) -> "LoRA":
        """The expert as views of the stacks that `attach` made, where it has this index."""
        linears, experts = slots_of(module, LowRankLinear), slots_of(module, LowRankExperts)

        def pair(path: str) -> tuple[Tensor, Tensor]:
            if at := place(path):
                stack: Stack = experts[at.experts].stacks[at.name]  # type: ignore[assignment]  # torch types it as Module
                a, b = stack.a[index, at.number], stack.b[index, at.number]
            else:
                a, b = linears[path].a[index], linears[path].b[index]
            rank = self.rank_of(path)
            return a[:rank].detach(), b[:rank].detach()

        return replace(self, pairs={path: pair(path) for path in self.pairs})

    @staticmethod
    def fresh(
        module: nn.Module, rank: int, alpha: float, targets: list[str], layers: range, generator: torch.Generator
    ) -> "LoRA":
        """Make an expert that changes nothing yet: A uniform as in the paper's code, B zero."""
        pairs = {}
        for path, weight in targeted(module, targets, layers).items():
            (outputs, inputs), like = weight.shape, exact_like(weight)
            a = torch.empty(rank, inputs, dtype=like.dtype)
            a.uniform_(-(inputs**-0.5), inputs**-0.5, generator=generator)
            pairs[path] = a.to(like.device), like.new_zeros(rank, outputs)
        return LoRA(rank, alpha, pairs)


class LowRankLinear(nn.Module):
    """base(x) + sum_e gate_e scale_e x A_e^T B_e: the linear slot with the pairs of e experts."""

    scale: Tensor

    def __init__(self, base: Linear, a: Float[Tensor, "e r i"], b: Float[Tensor, "e r o"], scale: Float[Tensor, " e"]):
        super().__init__()
        self.base = base
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, x: Float[Tensor, "n t i"], gates: Gates | None) -> Float[Tensor, "n t o"]:
        gates = require(gates, x)
        y = self.base(x, gates)
        if not len(gates.rows):
            return y
        return self.added(y.to(self.a.dtype), x.to(self.a.dtype), gates).to(y.dtype)

    def added(self, y: Float[Tensor, "n t o"], x: Float[Tensor, "n t i"], gates: Gates) -> Float[Tensor, "n t o"]:
        """y with the products of the pairs, all in the type of the pairs."""
        pairs, (e, r, _) = len(gates.rows), self.a.shape
        if gates.sizes is not None and len(gates.present) == 1:
            (expert,) = gates.present
            weights = gates.weights[:, expert] * self.scale[expert]
            return low_rank.single(y, x, self.a[expert], self.b[expert], weights)
        if pairs == gates.weights.numel() or (x.shape[1] == 1 and e * r <= MASKED_LIMIT):
            return low_rank.masked(y, x, self.a, self.b, gates.weights * self.scale)
        if gates.each is not None:
            experts, weights = gates.each
            return low_rank.each(y, x, self.a, self.b, experts, weights * self.scale.index_select(0, experts))
        values = gates.values * self.scale[gates.experts]
        return low_rank.gathered(y, x, self.a, self.b, gates.rows, gates.experts, values)


def exact_like(weight: Tensor) -> Tensor:
    """No values, on the device of a matrix and in the type of the adapters beside it: float32 at least."""
    return weight.new_empty(0, dtype=exact(weight.dtype))


def linears(module: nn.Module) -> dict[str, Linear]:
    """The linears by path. The matrices of sparse experts are none: they lie in one tensor."""
    return slots_of(module, Linear)


def of_linears(module: nn.Module) -> Weights:
    return {path: linear.weight for path, linear in linears(module).items()}


def adaptable(module: nn.Module) -> Weights:
    """The matrices that LoRA can adapt, by path: those of linears and of sparse experts."""
    return of_linears(module) | matrices(module)


def targeted(
    module: nn.Module, targets: list[str], layers: range, among: Callable[[nn.Module], Weights] = adaptable
) -> Weights:
    """The matrices with these last names in these layers, by path; CompatibilityError if a name is missing.

    Where gate and up of a sparse expert are both targets, they are one matrix.
    """
    every, wanted = among(module), {*targets}
    in_experts = wanted - {*HALVES} | {WHOLE} if wanted.issuperset(HALVES) else wanted
    inside = {path: weight for path, weight in every.items() if layer_of(path) in layers}
    asked = {path: in_experts if place(path) else wanted for path in inside}
    found = {path: weight for path, weight in inside.items() if name_of(path) in asked[path]}
    if not found:
        raise CompatibilityError("no linear of the base matches", field="targets", got=f"{targets} in layers {layers}")
    names = {*targets_in(found)}
    if missing := sorted(wanted - names - ({*HALVES} if WHOLE in names else set())):
        what, expected = "the base has no such linear to adapt", f"some of {', '.join(targets_in(every))}"
        hint = OF_LORA if {*missing} <= {*targets_in(matrices(module))} else None
        raise CompatibilityError(what, field="targets", expected=expected, got=", ".join(missing), hint=hint)
    return found


def attach(decoder: nn.Module, experts: list[LoRA]) -> None:
    """Put the experts, in this order, beside the matrices of `decoder` that any of them adapts."""

    def filling(path: str, base: Linear) -> LowRankLinear:
        rank = max(expert.rank_of(path) for expert in experts if path in expert.pairs)
        like = exact_like(base.weight)
        a = like.new_zeros(len(experts), rank, base.in_features)
        b = like.new_zeros(len(experts), rank, base.out_features)
        for index, expert in enumerate(experts):
            put(expert, path, a[index], b[index])
        return LowRankLinear(base, a, b, like.new_tensor([expert.scale_of(path) for expert in experts]))

    paths = {path for expert in experts for path in expert.pairs}
    inside = {path for path in paths if place(path)}
    wrap(decoder, paths - inside, filling)
    wrap_experts(decoder, inside, experts)


def wrap(module: nn.Module, paths: Iterable[str], filling: Callable[[str, Linear], nn.Module]) -> None:
    """Replace the linears at these paths by `filling(path, linear)`."""
    plain = linears(module)
    for path in sorted(paths):
        if path not in plain:
            refuse(module, path)
        replace_at(module, path, filling(path, plain[path]))


def wrap_experts(module: nn.Module, paths: Iterable[str], experts: list[LoRA]) -> None:
    """Put the pairs of all experts beside the matrices of sparse experts at these paths."""
    weights, plain = matrices(module), slots_of(module, Experts)
    for path in sorted({*paths} - weights.keys()):
        refuse(module, path)
    for path, names in placed(sorted(paths)).items():
        base = plain[path]
        stacks = {name: stacked(weights, len(base.down_proj), own, experts) for name, own in names.items()}
        replace_at(module, path, LowRankExperts(base, stacks))


def stacked(weights: Weights, count: int, paths: Mapping[int, str], experts: list[LoRA]) -> Stack:
    """The pairs of all experts beside one matrix of `count` sparse experts; `paths`: of those that any adapts."""
    weight = weights[next(iter(paths.values()))]
    like = exact_like(weight)
    rank = max(expert.rank_of(path) for expert in experts for path in paths.values() if path in expert.pairs)
    a, b = (like.new_zeros(len(experts), count, rank, size) for size in weight.shape[::-1])
    scale = like.new_zeros(len(experts), count)
    for index, expert in enumerate(experts):
        for number, path in paths.items():
            scale[index, number] = expert.scale_of(path)
            put(expert, path, a[index, number], b[index, number])
    return Stack(a, b, scale)


def replace_at(module: nn.Module, path: str, filling: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, filling)


def refuse(module: nn.Module, path: str) -> NoReturn:
    """Raise CompatibilityError for a path without a matrix that can be adapted."""
    at = place(path)
    try:
        module.get_submodule(at.experts if at else path)
    except AttributeError:
        raise CompatibilityError("the base has no such module", field=path) from None
    if at and at.experts in slots_of(module, Experts):
        raise CompatibilityError("the base has no such expert", field=path)
    raise CompatibilityError("the module already carries experts or is no linear", field=path)


def merge(decoder: nn.Module, experts: list[LoRA], weights: list[float]) -> None:
    """Merge the experts into the weights of a plain decoder: add sum_e weight_e (change of expert e)."""
    every = adaptable(decoder)
    with torch.no_grad():
        for expert, weight in zip(experts, weights, strict=True):
            for path, (a, b) in expert.pairs.items():
                base = every[path]
                whole = base.to(exact(base.dtype))
                base.copy_(whole + (weight * expert.scale_of(path)) * (b.t() @ a).to(whole))


def put(expert: LoRA, path: str, a: Float[Tensor, "r i"], b: Float[Tensor, "r o"]) -> None:
    """Copy the expert's pair of this path, if it has one, into the memory of a stack."""
    if path in expert.pairs:
        fill(a, expert.pairs[path][0], f"{path}.lora_A")
        fill(b, expert.pairs[path][1], f"{path}.lora_B")


def fill(stack: Float[Tensor, "r d"], values: Float[Tensor, "q c"], name: str) -> None:
    if values.shape[1] != stack.shape[1]:
        what, expected = "the adapter was made for another base", f"{stack.shape[1]} columns"
        raise CompatibilityError(what, field=name, expected=expected, got=f"{values.shape[1]}")
    with torch.no_grad():
        stack[: values.shape[0]] = values


def layer_of(path: str) -> int:
    """Index of the layer that a module path belongs to; -1 outside the layers (the head)."""
    parts = path.split(".")
    return int(parts[1]) if parts[0] == "layers" else -1


def name_of(path: str) -> str:
    return path.rpartition(".")[2]


def targets_in(paths: Iterable[str]) -> list[str]:
    return sorted({name_of(path) for path in paths})


def layers_in(paths: Iterable[str]) -> list[int]:
    return sorted({layer_of(path) for path in paths})
