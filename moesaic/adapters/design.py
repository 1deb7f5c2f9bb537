"""Designs of adapters: rank, targets and size.

Knows nothing about optimisers or files.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TypeVar

from torch import Generator, nn

from moesaic.adapters.factors import Choice, factors_of
from moesaic.adapters.lora import LoRA, Weights, of_linears, targeted
from moesaic.adapters.tensor_train import Init, TensorTrain

Adapter = LoRA | TensorTrain
D = TypeVar("D", bound="Design")


@dataclass(frozen=True)
class Design(ABC):
    """An adapter without values. `scale` multiplies its product."""

    rank: int
    scale: float
    targets: list[str]

    @abstractmethod
    def fresh(self, module: nn.Module, layers: range, generator: Generator) -> Adapter:
        """Make an untrained adapter for the linears of a plain decoder or encoder."""

    @abstractmethod
    def numbers(self, path: str, inputs: int, outputs: int) -> int:
        """Number of the adapter's parameters beside one linear."""

    @abstractmethod
    def targeted(self, module: nn.Module, layers: range) -> Weights:
        """The matrices that the adapter adapts, by path."""

    def num_parameters(self, module: nn.Module, layers: range) -> int:
        shapes = {path: weight.shape for path, weight in self.targeted(module, layers).items()}
        return sum(self.numbers(path, inputs, outputs) for path, (outputs, inputs) in shapes.items())

    def of_size(self: D, num_parameters: int, module: nn.Module, layers: range) -> D:
        """The design with the smallest rank that has at least this many parameters, or with the largest rank."""
        most = min(min(weight.shape) for weight in self.targeted(module, layers).values())
        designs = [replace(self, rank=rank) for rank in range(1, most + 1)]
        return next((one for one in designs if one.num_parameters(module, layers) >= num_parameters), designs[-1])


@dataclass(frozen=True)
class LoRADesign(Design):
    """LoRA: pairs of thin matrices."""

    def targeted(self, module: nn.Module, layers: range) -> Weights:
        return targeted(module, self.targets, layers)

    def fresh(self, module: nn.Module, layers: range, generator: Generator) -> LoRA:
        return LoRA.fresh(module, self.rank, self.scale * self.rank, self.targets, layers, generator)

    def numbers(self, path: str, inputs: int, outputs: int) -> int:
        return self.rank * (inputs + outputs)


@dataclass(frozen=True)
class TrainDesign(Design):
    """TT-LoRA: cores of tensor trains."""

    factors: Choice = "auto"
    init: Init = "zero"

    def targeted(self, module: nn.Module, layers: range) -> Weights:
        return targeted(module, self.targets, layers, of_linears)

    def fresh(self, module: nn.Module, layers: range, generator: Generator) -> TensorTrain:
        return TensorTrain.fresh(
            module, self.rank, self.scale, self.targets, layers, generator, self.factors, self.init
        )

    def numbers(self, path: str, inputs: int, outputs: int) -> int:
        return factors_of(path, inputs, outputs, self.rank, self.factors).num_parameters(self.rank)
