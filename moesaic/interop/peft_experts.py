"""LoRA of PEFT beside the packed matrices of sparse experts <-> pairs of single experts.

PEFT has one A and one B for a tensor of all experts (e, o, i): A (e r, i) holds the experts one below the other, B
(o, r e) side by side, for each rank next to each other. Before version 0.19 it took the tensor for one of (e, i, o):
its A is then (e r, o), its B (i, r e), and their product the transpose of the change. Knows nothing about files.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from moesaic.adapters import LoRA
from moesaic.adapters.sparse_experts import DOWN, HALVES, WHOLE, place, placed
from moesaic.errors import CompatibilityError, WeightsError
from moesaic.interop.peft_config import Declared

MODULE = re.compile(r"(layers\.\d+\.mlp\.experts)(\.base_layer)?")
"""The modules by which PEFT names such pairs. Where both tensors of a layer are adapted, gate and up are the inner one.
"""
FIRST = (0, 19)  # the version of PEFT from which on the outputs of a packed matrix come first

Shape = Sequence[int]
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Packed:
    """A pair of PEFT for all experts of a layer. `swapped`: as before 0.19. `slowest`: see `peft_config.ORDERS`."""

    experts: str
    name: str
    rank: int
    a: Shape
    b: Shape
    slowest: bool
    swapped: bool = False

    @property
    def count(self) -> int:
        return self.a[0] // self.rank

    @property
    def sizes(self) -> tuple[int, int]:
        """Inputs and outputs of a matrix."""
        return (self.b[0], self.a[1]) if self.swapped else (self.a[1], self.b[0])

    @property
    def paths(self) -> list[str]:
        return [f"{self.experts}.{number}.{self.name}" for number in range(self.count)]

    def pairs(self, a: Tensor, b: Tensor) -> dict[str, Pair]:
        """The pairs of the single experts, as views."""
        above = a.unflatten(0, (self.count, self.rank))
        shape, order = ((self.count, self.rank), (1, 2, 0)) if self.slowest else ((self.rank, self.count), (2, 1, 0))
        beside = b.unflatten(1, shape).permute(order)
        return dict(
            zip(self.paths, zip(*((beside, above) if self.swapped else (above, beside)), strict=True), strict=True)
        )


def parameter(experts: str, name: str) -> str:
    """The name of a packed tensor in transformers, of all families."""
    return f"model.{experts}.{name}"


def packed(
    shapes: Mapping[str, tuple[Shape, Shape]], declared: Declared, path: Path, base: Mapping[str, Tensor] | None
) -> dict[str, Packed]:
    """The pairs beside packed experts among modules and the shapes of their A and B, by module.

    `base`: the matrices that can be adapted. WeightsError for shapes that contradict the configuration,
    CompatibilityError for another number of experts than the base's.
    """
    layers: dict[str, dict[str, Packed]] = {}
    for module, (a, b) in shapes.items():
        if match := MODULE.fullmatch(module):
            name = name_of(match[1], bool(match[2]), f"{match[1]}.base_layer" in shapes, declared)
            one = Packed(match[1], name, declared.rank_of(parameter(match[1], name)), a, b, declared.slowest)
            if a[0] % one.rank or a[0] != b[1]:
                expected, got = f"rank {one.rank} for each expert in both halves", f"{[*a]} and {[*b]}"
                raise WeightsError("a pair of another rank", path=path, field=module, expected=expected, got=got)
            layers.setdefault(match[1], {})[module] = one
    found = {module: one for some in layers.values() for module, one in turned(some, declared, base).items()}
    own = placed(base or ())
    for module, one in found.items():
        count = len(own.get(one.experts, {}).get(one.name, ()))
        if count not in (0, one.count):
            what = "the adapter was made for another number of experts"
            raise CompatibilityError(what, path=path, field=module, expected=count, got=one.count)
    return found


def name_of(experts: str, inner: bool, outer: bool, declared: Declared) -> str:
    """The tensor that a module's pair adapts; alone in its layer it may be either, and the configuration decides."""
    names = [WHOLE] if inner else [DOWN] if outer else [WHOLE, DOWN]
    named = [name for name in names if declared.parameter(parameter(experts, name))]
    if len(named) != 1:
        what, expected = "the configuration does not say which tensor is adapted", " or ".join(names)
        got = f"{', '.join(declared.parameters) or 'nothing'} for {experts}"
        raise WeightsError(what, path=declared.path, field="target_parameters", expected=expected, got=got)
    return named[0]


def turned(some: Mapping[str, Packed], declared: Declared, base: Mapping[str, Tensor] | None) -> dict[str, Packed]:
    """The pairs of a layer with their inputs and outputs told apart: by the base, by each other, or by the version."""

    def fit(swapped: bool) -> bool:
        sizes = {one.name: replace(one, swapped=swapped).sizes for one in some.values()}
        if base is not None:
            own = {one.name: base[one.paths[0]].shape for one in some.values() if one.paths[0] in base}
            return all(tuple(shape[::-1]) == sizes[name] for name, shape in own.items())
        if len(sizes) == 1:
            return True
        (inputs, both), (inner, outputs) = sizes[WHOLE], sizes[DOWN]
        return inputs == outputs and both == 2 * inner

    ways = [way for way in (False, True) if fit(way)]
    version = re.match(r"(\d+)\.(\d+)", declared.version)
    older = version is not None and (int(version[1]), int(version[2])) < FIRST
    swapped = ways[0] if len(ways) == 1 else older
    return {module: replace(one, swapped=swapped) for module, one in some.items()}


def packable(lora: LoRA) -> dict[tuple[str, str], list[str]]:
    """The paths that PEFT holds as one pair, by the layer's experts and the name of their tensor.

    A pair is packed if all experts of the layer have pairs of one rank and one alpha, and none of gate or up alone.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for experts, names in placed(lora.pairs).items():
        own = {name: [paths[number] for number in sorted(paths)] for name, paths in names.items()}
        whole = all(paths.keys() == {*range(len(paths))} for paths in names.values())
        even = all(len({(lora.rank_of(path), lora.scale_of(path)) for path in paths}) == 1 for paths in own.values())
        if whole and even and own.keys() <= {WHOLE, DOWN}:
            found |= {(experts, name): paths for name, paths in own.items()}
    return found


def renamed(path: str, packed: Collection[tuple[str, str]]) -> bool:
    """Whether PEFT would take the name of a linear for that of packed experts: it is then adapted as a parameter."""
    module, _, name = path.rpartition(".")
    beside = module.endswith(".shared_expert") or (packed and place(path) is None)
    return bool(beside) and name in ("gate", *HALVES, DOWN)


def require_packable(lora: LoRA, folder: Path) -> None:
    """Raise CompatibilityError unless PEFT can hold all pairs beside sparse experts."""
    packed = packable(lora)
    for experts, names in placed(lora.pairs).items():
        for name in names:
            if (experts, name) not in packed:
                what = "PEFT has one pair for all experts of a layer, of one rank and one alpha"
                hint = "merge it into its base: export it with --format mixtral or qwen3-moe"
                raise CompatibilityError(what, path=folder, field=f"{experts}.{name}", hint=hint)


def module_of(experts: str, name: str, packed: Collection[tuple[str, str]]) -> str:
    """The module by which PEFT names the pair of a packed tensor."""
    return f"{experts}.base_layer" if name == WHOLE and (experts, DOWN) in packed else experts


def together(pairs: Sequence[Pair]) -> Pair:
    """One pair of PEFT of those of all experts, in their order."""
    return torch.cat([a for a, _ in pairs]), torch.stack([b for _, b in pairs]).permute(2, 1, 0).flatten(1)
