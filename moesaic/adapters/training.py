"""One adapter of either kind: as it is designed, beside the linears of a model to be trained, and out again as a value.

For everything but training an adapter is its pairs: `attach(module, [adapter.lora()])`. Knows nothing about optimisers.
"""

from dataclasses import dataclass, replace
from typing import Literal

from torch import Generator, nn

from moesaic.adapters.factors import Choice, factors_of
from moesaic.adapters.lora import LoRA, attach, standing, targeted, wrap
from moesaic.adapters.tensor_train import Init, TensorTrain, TensorTrainLinear
from moesaic.errors import CompatibilityError
from moesaic.nn import Linear

Adapter = LoRA | TensorTrain


@dataclass(frozen=True)
class Design:
    """What an adapter is before it has values. `scale` multiplies its product, whatever that is made of."""

    kind: Literal["lora", "tt_lora"]
    rank: int
    scale: float
    targets: list[str]
    factors: Choice = "auto"  # of tensor trains
    init: Init = "zero"  # of tensor trains

    def fresh(self, module: nn.Module, layers: range, generator: Generator) -> Adapter:
        """An untrained adapter for the linears of a plain decoder or encoder."""
        if self.kind == "lora":
            return LoRA.fresh(module, self.rank, self.scale * self.rank, self.targets, layers, generator)
        return TensorTrain.fresh(
            module, self.rank, self.scale, self.targets, layers, generator, self.factors, self.init
        )

    def num_parameters(self, module: nn.Module, layers: range) -> int:
        """The numbers that such an adapter has beside the linears of a plain decoder or encoder."""
        total = 0
        for path, linear in targeted(module, self.targets, layers).items():
            i, o = linear.in_features, linear.out_features
            if self.kind == "lora":
                total += self.rank * (i + o)
            else:
                total += factors_of(path, i, o, self.rank, self.factors).num_parameters(self.rank)
        return total

    def of_size(self, num_parameters: int, module: nn.Module, layers: range) -> "Design":
        """The same with the smallest rank that has no fewer parameters; the largest rank there is, if none has."""
        most = min(min(linear.weight.shape) for linear in targeted(module, self.targets, layers).values())
        designs = [replace(self, rank=rank) for rank in range(1, most + 1)]
        return next((one for one in designs if one.num_parameters(module, layers) >= num_parameters), designs[-1])


def adapt(module: nn.Module, adapter: Adapter) -> None:
    """Put one adapter into a plain decoder or encoder, its numbers as parameters: pairs, or the cores of trains.

    Batches then need the gates of one expert, `Gates.one(0, rows, 1, like)`. Whether the base learns, too, is for the
    caller to say before: `module.requires_grad_(False)`.
    """
    if isinstance(adapter, LoRA):
        attach(module, [adapter])
    else:
        wrap(module, adapter.cores, lambda path, base: train_beside(path, base, adapter))


def train_beside(path: str, base: Linear, expert: TensorTrain) -> TensorTrainLinear:
    """The slot with the cores of one path, if they make a matrix of the base's sizes."""
    own, sizes = expert.cores[path].factors.sizes, (base.in_features, base.out_features)
    if own != sizes:
        raise CompatibilityError("the adapter was made for another base", field=path, expected=str(sizes), got=str(own))
    return TensorTrainLinear(base, expert.cores[path], expert.alpha)


def detach(module: nn.Module, adapter: Adapter) -> Adapter:
    """What has become of an adapter that `adapt` put into a module: the same kind, rank and alpha, its values now."""
    if isinstance(adapter, TensorTrain):
        slots = dict(module.named_modules())
        trains = {path: slot for path in adapter.cores if isinstance(slot := slots[path], TensorTrainLinear)}
        return TensorTrain(adapter.rank, adapter.alpha, {path: slot.cores() for path, slot in trains.items()})
    stands = standing(module, adapter, 0)
    return replace(stands, pairs={path: (a.clone(), b.clone()) for path, (a, b) in stands.pairs.items()})
