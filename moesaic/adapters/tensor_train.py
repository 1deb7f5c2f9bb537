"""TT-LoRA experts (arXiv 2408.01008): y = W x + alpha * TT(x), where TT is the matrix of a tensor train.

The cores on either side of the bond between inputs and outputs multiply out to LoRA's A and B, the same function, so
batching, merging and export are LoRA's. Training multiplies them out in each call; all else calls `lora()` once.
Layout: `ops.tensor_train`. Knows nothing about files, training or routers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from moesaic.adapters.factors import Choice, Factors, factors_of
from moesaic.adapters.lora import LoRA, exact_like, layers_in, of_linears, targeted, targets_in, wrap
from moesaic.adapters.slots import slots_of
from moesaic.errors import CompatibilityError
from moesaic.nn import Linear
from moesaic.ops import low_rank, tensor_train
from moesaic.ops.tensor_train import Core
from moesaic.routing import Gates, require

Init = Literal["zero", "published"]


class Cores(NamedTuple):
    """The train of one matrix: cores (r, f, r) of its inputs, then of its outputs; first and last bond are 1."""

    inputs: tuple[Core, ...]
    outputs: tuple[Core, ...]

    @property
    def factors(self) -> Factors:
        return Factors(tuple(c.shape[1] for c in self.inputs), tuple(c.shape[1] for c in self.outputs))


@dataclass(frozen=True)
class TensorTrain:
    """One expert: for each module path the cores of a train, with the same rank at every inner bond.

    `alpha` is the factor of the product; it is not divided by the rank.
    """

    rank: int
    alpha: float
    cores: Mapping[str, Cores]

    @property
    def targets(self) -> list[str]:
        return targets_in(self.cores)

    @property
    def layers(self) -> list[int]:
        return layers_in(self.cores)

    @property
    def num_parameters(self) -> int:
        return sum(core.numel() for train in self.cores.values() for side in train for core in side)

    @property
    def in_experts(self) -> dict[str, int]:
        """Return nothing: tensor trains adapt linears alone."""
        return {}

    def lora(self) -> LoRA:
        """The same expert as LoRA pairs of this rank, with alpha * rank, as LoRA divides by it; differentiable."""
        pairs = {path: tensor_train.pair(*train) for path, train in self.cores.items()}
        return LoRA(self.rank, self.alpha * self.rank, pairs)

    def adapt(self, module: nn.Module) -> None:
        """Put the expert into a plain decoder or encoder for training: its cores become parameters.

        Batches then need the gates of one expert, `Gates.one(0, rows, 1, like)`.
        """
        wrap(module, self.cores, lambda path, base: TensorTrainLinear.beside(path, base, self))

    def detach(self, module: nn.Module) -> "TensorTrain":
        """The expert that `adapt` put into a module, with its values now."""
        slots = slots_of(module, TensorTrainLinear)
        return TensorTrain(self.rank, self.alpha, {path: slots[path].cores() for path in self.cores})

    def held_in(self, module: nn.Module, index: int) -> "TensorTrain":
        """Return the expert itself: a mixture holds its pairs, not its cores."""
        return self

    @staticmethod
    def fresh(
        module: nn.Module,
        rank: int,
        alpha: float,
        targets: list[str],
        layers: range,
        generator: Generator,
        factors: Choice = "auto",
        init: Init = "zero",
    ) -> "TensorTrain":
        """Make an untrained expert; CompatibilityError if factors or rank do not fit a matrix.

        `zero`: it changes nothing yet. A has the variance of LoRA's A; B would preserve norms, but its last core is
        zero, so that a step moves B as far as LoRA's. `published`: Kaiming-uniform cores, each divided by its Frobenius
        norm, a small change from the start.
        """
        cores = {}
        for path, weight in targeted(module, targets, layers, of_linears).items():
            outputs, inputs = weight.shape
            found = factors_of(path, inputs, outputs, rank, factors)
            before, after = ([noise(exact_like(weight), shape, generator) for shape in s] for s in found.shapes(rank))
            if init == "published":  # the norm cancels the bound of Kaiming's rule
                before, after = ([core / core.norm() for core in side] for side in (before, after))
            else:
                paths = rank ** (len(before) - 1)  # products that an entry of A sums
                spread = (3 * inputs * paths) ** (-0.5 / len(before))
                before, after = [core * spread for core in before], [core * rank**-0.5 for core in after]
                after[-1].zero_()
            cores[path] = Cores(tuple(before), tuple(after))
        return TensorTrain(rank, alpha, cores)


def noise(like: Tensor, shape: tuple[int, int, int], generator: Generator) -> Core:
    return torch.empty(shape, dtype=like.dtype).uniform_(-(3**0.5), 3**0.5, generator=generator).to(like.device)


class TensorTrainLinear(nn.Module):
    """base(x) + gate * alpha * TT(x): the linear slot with the cores of one expert as parameters, for training."""

    def __init__(self, base: Linear, cores: Cores, alpha: float):
        super().__init__()
        self.base, self.alpha = base, alpha
        own = ([core.detach().to(exact_like(base.weight), copy=True) for core in side] for side in cores)
        self.inputs, self.outputs = map(nn.ParameterList, own)

    @staticmethod
    def beside(path: str, base: Linear, expert: TensorTrain) -> "TensorTrainLinear":
        """Make the slot with the cores of one path; CompatibilityError if their matrix has other sizes."""
        own, sizes = expert.cores[path].factors.sizes, (base.in_features, base.out_features)
        if own != sizes:
            what = "the adapter was made for another base"
            raise CompatibilityError(what, field=path, expected=str(sizes), got=str(own))
        return TensorTrainLinear(base, expert.cores[path], expert.alpha)

    def forward(self, x: Float[Tensor, "n t i"], gates: Gates | None) -> Float[Tensor, "n t o"]:
        gates = require(gates, x)
        y = self.base(x, gates)
        if not len(gates.rows):
            return y
        a, b = tensor_train.pair([*self.inputs], [*self.outputs])
        return low_rank.single(y.to(a.dtype), x.to(a.dtype), a, b, gates.weights[:, 0] * self.alpha).to(y.dtype)

    def cores(self) -> Cores:
        inputs, outputs = (tuple(core.detach().clone() for core in side) for side in (self.inputs, self.outputs))
        return Cores(inputs, outputs)
