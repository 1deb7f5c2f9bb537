"""LoRA experts (arXiv 2106.09685): pairs of thin matrices beside named linears, applied row by row under Gates.

`attach` wraps a decoder's linears with the stacked pairs of several experts; ranks and targets may differ, what an
expert does not touch counts as zero. Knows nothing about files, training or who chose the experts.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from moesaic.adapters.slots import slots_of
from moesaic.errors import CompatibilityError
from moesaic.nn import Linear, SparseFFN
from moesaic.ops import low_rank
from moesaic.routing import Gates, require

# Up to this many inner columns, two dense GEMMs with a mask beat gathering each row's own pair (one token a row).
MASKED_LIMIT = 128

SPARSE = "the matrices of a sparse ffn's experts cannot be adapted yet"


@dataclass(frozen=True)
class LoRA:
    """One expert: for each module path, A (r, i) and B (r, o); the change is x A^T B * alpha / r.

    B is kept as (r, o), the transpose of how PEFT stores it, so that stacks of experts multiply without a copy.
    `rank` and `alpha` are what most modules have. A pair of another rank says so by its shape; `alphas` are those of
    the modules that have another.
    """

    rank: int
    alpha: float
    pairs: Mapping[str, tuple[Float[Tensor, "r i"], Float[Tensor, "r o"]]]
    alphas: Mapping[str, float] = field(default_factory=dict)

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def rank_of(self, path: str) -> int:
        """The rank of one module's pair."""
        return self.pairs[path][0].shape[0]

    def scale_of(self, path: str) -> float:
        """What one module's product is multiplied by; modules that the expert does not touch add nothing."""
        return self.alphas.get(path, self.alpha) / self.rank_of(path) if path in self.pairs else 0.0

    @property
    def targets(self) -> list[str]:
        """The linears touched, by their last name, in a fixed order."""
        return targets_in(self.pairs)

    @property
    def layers(self) -> list[int]:
        return layers_in(self.pairs)

    @property
    def num_parameters(self) -> int:
        return sum(a.numel() + b.numel() for a, b in self.pairs.values())

    def lora(self) -> "LoRA":
        """Itself: every kind of adapter has its pairs under this name."""
        return self

    def adapt(self, module: nn.Module) -> None:
        """Put the expert into a plain decoder or encoder to be trained: its pairs become parameters.

        Batches then need the gates of one expert, `Gates.one(0, rows, 1, like)`.
        """
        attach(module, [self])

    def detach(self, module: nn.Module) -> "LoRA":
        """The expert that `adapt` put into a module, with its values now."""
        now = standing(module, self, 0)
        return replace(now, pairs={path: (a.clone(), b.clone()) for path, (a, b) in now.pairs.items()})

    def held_in(self, module: nn.Module, index: int) -> "LoRA":
        """The expert as views of the stacks that `attach` made of it, at this index."""
        return standing(module, self, index)

    @staticmethod
    def fresh(
        module: nn.Module, rank: int, alpha: float, targets: list[str], layers: range, generator: torch.Generator
    ) -> "LoRA":
        """An expert that changes nothing yet: A uniform as in the paper's code, B zero."""
        pairs = {}
        for path, linear in targeted(module, targets, layers).items():
            a = linear.weight.new_empty(rank, linear.in_features)
            bound = linear.in_features**-0.5
            pairs[path] = (
                a.uniform_(-bound, bound, generator=generator),
                linear.weight.new_zeros(rank, linear.out_features),
            )
        return LoRA(rank, alpha, pairs)


class LowRankLinear(nn.Module):
    """base(x) + sum_e gate_e scale_e x A_e^T B_e: the linear slot with e experts stacked beside the base."""

    scale: Tensor

    def __init__(self, base: Linear, a: Float[Tensor, "e r i"], b: Float[Tensor, "e r o"], scale: Float[Tensor, " e"]):
        super().__init__()
        self.base = base
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, x: Float[Tensor, "n t i"], gates: Gates | None) -> Float[Tensor, "n t o"]:
        gates = require(gates, x)
        y = self.base(x, gates)
        pairs, (e, r, _) = len(gates.rows), self.a.shape
        if not pairs:
            return y
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


def linears(module: nn.Module) -> dict[str, Linear]:
    """The linears that adapters can stand beside, by path: all but those in sparse experts, which see no gates."""
    sparse = tuple(f"{path}.experts." for path in slots_of(module, SparseFFN))
    return {path: linear for path, linear in slots_of(module, Linear).items() if not path.startswith(sparse)}


def targeted(module: nn.Module, targets: list[str], layers: range) -> dict[str, Linear]:
    """The linears of these last names in these layers, by path; each name must be found in one of them."""
    adaptable = linears(module)
    found = {
        path: linear
        for path, linear in adaptable.items()
        if path.rsplit(".", 1)[-1] in targets and layer_of(path) in layers
    }
    if not found:
        raise CompatibilityError("no linear of the base matches", field="targets", got=f"{targets} in layers {layers}")
    if missing := sorted(set(targets) - set(targets_in(found))):
        raise CompatibilityError(
            "the base has no such linear to adapt",
            field="targets",
            expected=f"some of {', '.join(targets_in(adaptable))}",
            got=", ".join(missing),
            hint=SPARSE if slots_of(module, SparseFFN) else None,
        )
    return found


def attach(decoder: nn.Module, experts: list[LoRA]) -> None:
    """Put the experts, in this order, beside the linears of `decoder` that any of them touches."""

    def stacked(path: str, base: Linear) -> LowRankLinear:
        rank = max(expert.rank_of(path) for expert in experts if path in expert.pairs)
        a = base.weight.new_zeros(len(experts), rank, base.in_features)
        b = base.weight.new_zeros(len(experts), rank, base.out_features)
        for index, expert in enumerate(experts):
            if path in expert.pairs:
                fill(a[index], expert.pairs[path][0], f"{path}.lora_A")
                fill(b[index], expert.pairs[path][1], f"{path}.lora_B")
        return LowRankLinear(base, a, b, base.weight.new_tensor([expert.scale_of(path) for expert in experts]))

    wrap(decoder, {path for expert in experts for path in expert.pairs}, stacked)


def standing(decoder: nn.Module, expert: LoRA, place: int) -> LoRA:
    """The expert that `attach` put in this place, by what stands there now; its tensors are those of the stacks."""
    slots = slots_of(decoder, LowRankLinear)

    def held(path: str) -> tuple[Tensor, Tensor]:
        rank = expert.rank_of(path)
        return slots[path].a[place, :rank].detach(), slots[path].b[place, :rank].detach()

    return replace(expert, pairs={path: held(path) for path in expert.pairs})


def wrap(module: nn.Module, paths: Iterable[str], filling: Callable[[str, Linear], nn.Module]) -> None:
    """Replace the linears at these paths by fillings of their slots, each made around the linear."""
    plain, adaptable = slots_of(module, Linear), linears(module)
    for path in sorted(paths):
        try:
            module.get_submodule(path)
        except AttributeError:
            raise CompatibilityError("the base has no such module", field=path) from None
        if path not in plain:
            raise CompatibilityError("the module already carries experts or is no linear", field=path)
        if path not in adaptable:
            raise CompatibilityError("this linear cannot be adapted", field=path, hint=SPARSE)
        parent, _, name = path.rpartition(".")
        setattr(module.get_submodule(parent), name, filling(path, plain[path]))


def merge(decoder: nn.Module, experts: list[LoRA], weights: list[float]) -> None:
    """Add sum_e weight_e (change of expert e) to the weights of a plain decoder: one dense model."""
    with torch.no_grad():
        for expert, weight in zip(experts, weights, strict=True):
            for path, (a, b) in expert.pairs.items():
                base = decoder.get_parameter(f"{path}.weight")
                base.add_((weight * expert.scale_of(path)) * (b.t() @ a).to(base.dtype))


def fill(room: Float[Tensor, "r d"], values: Float[Tensor, "q c"], name: str) -> None:
    """Copy an expert's factor into its padded place; absent ranks stay zero."""
    if values.shape[1] != room.shape[1]:
        raise CompatibilityError(
            "the adapter was made for another base",
            field=name,
            expected=f"{room.shape[1]} columns",
            got=f"{values.shape[1]}",
        )
    with torch.no_grad():
        room[: values.shape[0]] = values


def layer_of(path: str) -> int:
    """The block a module path belongs to; -1 outside the blocks (the head)."""
    parts = path.split(".")
    return int(parts[1]) if parts[0] == "layers" else -1


def targets_in(paths: Iterable[str]) -> list[str]:
    """The last names of module paths, each once, in a fixed order."""
    return sorted({path.rsplit(".", 1)[-1] for path in paths})


def layers_in(paths: Iterable[str]) -> list[int]:
    return sorted({layer_of(path) for path in paths})
