"""TT-LoRA experts as files: the cores in safetensors, and a small JSON of settings, which must agree.

Knows nothing about manifests or fingerprints.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moesaic.adapters import Cores, Factors, TensorTrain
from moesaic.adapters.factors import check
from moesaic.adapters.slots import slots_of
from moesaic.errors import CompatibilityError, MoesaicError, WeightsError
from moesaic.nn import Linear
from moesaic.tensors.json_config import read_settings
from moesaic.tensors.tensors import read_tensors

CONFIG, TENSORS = "tensor_train.json", "tensor_train.safetensors"
KIND, FORMAT = "tt_lora", 1
SIDES = ("inputs", "outputs")
MODULE = re.compile(r"layers\.\d{1,4}(\.\w+)+", re.ASCII)


def written(expert: TensorTrain) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The content of an expert's two files: settings, with the factors of each module's train, and cores."""
    factors = {path: [*map(list, cores.factors)] for path, cores in sorted(expert.cores.items())}
    settings = {"kind": KIND, "format": FORMAT, "rank": expert.rank, "alpha": expert.alpha, "modules": factors}
    return settings, tensors_of(expert)


def tensors_of(expert: TensorTrain) -> dict[str, Tensor]:
    """The cores by name: `PATH.inputs.0` is the first of a train."""
    return {
        f"{path}.{side}.{k}": core
        for path, train in expert.cores.items()
        for side, cores in zip(SIDES, train, strict=True)
        for k, core in enumerate(cores)
    }


def read_train(folder: Path, module: nn.Module | None = None) -> TensorTrain:
    """Read the expert of a folder, in the default dtype; `module`: the plain model that it must fit.

    WeightsError if a file is damaged or the two disagree; CompatibilityError if it belongs to another base.
    """
    path = folder / CONFIG
    rank, alpha, factors = read_declared(path)
    tensors, trains = read_tensors(folder / TENSORS), {}
    for name, own in factors.items():
        sides = [
            tuple(taken(folder / TENSORS, tensors, f"{name}.{side}.{k}", shape) for k, shape in enumerate(shapes))
            for side, shapes in zip(SIDES, own.shapes(rank), strict=True)
        ]
        trains[name] = Cores(*sides)
    if tensors:
        raise WeightsError("a tensor without settings", path=folder / TENSORS, field=sorted(tensors)[0])
    if module is not None:
        fits(path, factors, module)
    return TensorTrain(rank, alpha, trains)


def read_declared(path: Path) -> tuple[int, float, dict[str, Factors]]:
    """Read rank, alpha and the factors of each module."""
    found = read_settings(path)
    wanted = {"kind", "format", "rank", "alpha", "modules"}

    def refuse(field: str, expected: Any) -> WeightsError:
        return WeightsError("wrong value", path=path, field=field, expected=expected, got=repr(found.get(field)))

    if wrong := sorted(found.keys() ^ wanted):
        what = "unknown setting" if wrong[0] in found else "missing"
        raise WeightsError(what, path=path, field=wrong[0], expected=f"exactly {', '.join(sorted(wanted))}")
    if found["kind"] != KIND:
        raise refuse("kind", KIND)
    if found["format"] != FORMAT:
        raise refuse("format", f"{FORMAT}, the newest format of this version of moesaic")
    rank, alpha, modules = found["rank"], found["alpha"], found["modules"]
    if type(rank) is not int or not 1 <= rank <= 1 << 16:
        raise refuse("rank", "a whole number from 1 to 65,536")
    if type(alpha) not in (int, float) or not 0 < alpha <= 1e6:
        raise refuse("alpha", "a number above 0, up to 1e+06")
    if not isinstance(modules, dict) or not modules:
        raise refuse("modules", "{module: [[factors of the inputs], [factors of the outputs]]}")
    return rank, float(alpha), {name: factors_in(path, name, sides, rank) for name, sides in modules.items()}


def factors_in(path: Path, name: str, sides: Any, rank: int) -> Factors:
    """Check the factors of one module: two lists of whole numbers that permit the rank."""
    field, expected = f"modules.{name}", "[[factors of the inputs], [factors of the outputs]]"
    if not MODULE.fullmatch(name):
        raise WeightsError("not a module of a layer", path=path, field=field, expected="layers.NUMBER.NAME")
    lists = isinstance(sides, list) and len(sides) == 2 and all(isinstance(side, list) and side for side in sides)
    if not lists or not all(type(factor) is int and 1 <= factor <= 1 << 20 for side in sides for factor in side):
        raise WeightsError("wrong value", path=path, field=field, expected=expected, got=repr(sides))
    found = Factors(*map(tuple, sides))
    try:
        check(name, found, *found.sizes, rank)
    except MoesaicError as error:
        raise WeightsError(error.what, path=path, field=field, expected=error.expected, got=error.got) from None
    return found


def taken(path: Path, tensors: dict[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    """Take a core out of `tensors`, in the default dtype; WeightsError if it is missing or has another shape."""
    if (core := tensors.pop(name, None)) is None:
        raise WeightsError("a core is missing", path=path, field=name, expected=str(list(shape)))
    if core.shape != shape or not core.is_floating_point():
        got = f"{str(core.dtype).removeprefix('torch.')} {[*core.shape]}"
        raise WeightsError("the core contradicts the settings", path=path, field=name, expected=list(shape), got=got)
    return core.to(torch.get_default_dtype())


def fits(path: Path, factors: Mapping[str, Factors], module: nn.Module) -> None:
    """Raise CompatibilityError for a train without a linear of the base, or of other sizes."""
    linears = slots_of(module, Linear)
    for name, own in factors.items():
        field, hint = f"modules.{name}", "was it trained on this base?"
        if (linear := linears.get(name)) is None:
            raise CompatibilityError("the base has no such linear", path=path, field=field, hint=hint)
        expected, got = (linear.in_features, linear.out_features), own.sizes
        if got != expected:
            what = "the adapter was made for another base"
            raise CompatibilityError(what, path=path, field=field, expected=str(expected), got=str(got), hint=hint)
