"""IA3 experts (arXiv 2205.05638): beside each targeted linear a vector that scales its outputs, y = l * W x.

The package has no such kind: it is added to the table by a test. Knows nothing about rows or routers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from moesaic.adapters.lora import layers_in, linears, targeted, wrap
from moesaic.artefacts.adapter import KIND, manifest_of
from moesaic.artefacts.stored import Stored
from moesaic.errors import CompatibilityError
from moesaic.files import write_manifest
from moesaic.interop.outline import weighed
from moesaic.kinds.gates import alone
from moesaic.kinds.kind import Footprint, Kind, Reloaded, Started
from moesaic.kinds.parameters import asleep, counted, num_parameters
from moesaic.model.mixture import AdapterMixture
from moesaic.nn import Linear
from moesaic.routing import require
from moesaic.sections.expert import Expert, Target
from moesaic.sections.layers import layer_range
from moesaic.tensors.tensors import fingerprint, read_tensors, write_tensors

TENSORS = "ia3.safetensors"


class IA3Section(Expert):
    """An IA3 expert."""

    kind: Literal["ia3"]
    """Kind of the expert: vectors that scale the outputs of linears."""
    targets: list[Target] = Field(default=["k_proj", "v_proj", "up_proj"])
    """Linears to scale."""


@dataclass(frozen=True)
class StoredIA3(Stored):
    """An expert as read: its vectors, by the path of their linear."""

    vectors: Mapping[str, Tensor]
    manifest: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.vectors)


class ScaledLinear(nn.Module):
    """y = W x * (1 + sum_e gate_e (l_e - 1)): the linear slot with the vectors of e experts."""

    def __init__(self, base: nn.Module, vectors: Tensor):
        super().__init__()
        self.base, self.vectors = base, nn.Parameter(vectors)

    def forward(self, x, gates):
        scale = 1 + require(gates, x).weights @ (self.vectors - 1)
        return self.base(x, gates) * scale[:, None]


class IA3Kind(Kind[list[str], Mapping[str, Tensor], StoredIA3]):
    """Vectors that scale the outputs of linears."""

    word, site, section, files = "ia3", "scaling", IA3Section, (TENSORS,)
    changes, adopts, always_held = "scales", False, True
    no_wider = "a vector is as wide as its linear"

    def design(self, spec):
        return [*spec.targets]

    def joint(self, designs):
        return sorted({target for design in designs for target in design})

    def begin(self, body, design, layers: str | None, generator: Generator):
        found = targeted(body.requires_grad_(False), design, layer_range(layers, body.config.num_layers))
        put(body, [{path: weight.new_ones(len(weight)) for path, weight in found.items()}])
        return Started(alone, lambda: {path: body.get_submodule(path).vectors[0].clone() for path in found})

    def save(self, folder: Path, value, base, facts: dict[str, Any], head=None) -> None:
        write_tensors(folder / TENSORS, value)
        own = {"kind": KIND, "adapter": "ia3", "fingerprint": fingerprint(value), "layers": layers_in(value)}
        size = sum(map(torch.numel, value.values()))
        write_manifest(folder, {**own, "base_fingerprint": base.fingerprint, "parameters": size, **facts})

    def reload(self, folder: Path, base, design):
        stored = self.read(folder, base)
        self.attach(base.decoder, [stored])
        return Reloaded(base.decoder, alone, stored)

    def idle_part(self, expert, base):
        return next((path for path, vector in expert.stored.vectors.items() if vector.eq(1).all()), None)

    def holds(self, folder: Path) -> bool:
        return (folder / TENSORS).is_file()

    def read(self, folder: Path, base):
        found, manifest = read_tensors(folder / TENSORS), manifest_of(folder, base.fingerprint)
        sizes = {path: (linear.out_features,) for path, linear in linears(base.decoder).items()}
        if foreign := [path for path, vector in found.items() if sizes.get(path) != tuple(vector.shape)]:
            raise CompatibilityError("no such linear in the base", path=folder / TENSORS, field=foreign[0])
        return StoredIA3(found, manifest)

    def attach(self, base, experts: Sequence[StoredIA3]) -> None:
        put(base, [one.vectors for one in experts])

    def join(self, base, experts, router, mixing):
        self.attach(base.decoder, experts)
        lowest = min(min(layers_in(one.vectors)) for one in experts)
        return AdapterMixture(base.decoder, router.over(base.decoder, mixing.disabled), lowest, mixing.source)

    def average(self, decoder, experts):
        with torch.no_grad():
            for path in {path for one in experts for path in one.vectors}:
                weight = decoder.get_submodule(path).weight
                ones = weight.new_ones(len(weight))
                weight.mul_(torch.stack([one.vectors.get(path, ones) for one in experts]).mean(0)[:, None])
        return decoder

    def counts(self, base, mixture, experts, weights):
        sizes = torch.tensor([float(self.cost(base, one)) for one in experts]) - self.own(base)
        active = self.own(base) + round(((weights > 0) * sizes).sum(-1).mean().item())
        return counted(num_parameters(base), int(sizes.sum()), mixture.router, active)

    def cost(self, base, stored):
        return self.own(base) + sum(map(torch.numel, stored.vectors.values()))

    def own(self, base) -> int:
        return num_parameters(base) - asleep(base)

    def planned(self, base, spec):
        found = targeted(base.module, spec.targets, layer_range(spec.layers, base.config.num_layers))
        return Footprint(counts={torch.float32: sum(linear.out_features for linear in found.values())})

    def beside(self, base, folder: Path):
        return Footprint(counts=weighed(folder)), []


def put(body: nn.Module, experts: Sequence[Mapping[str, Tensor]]) -> None:
    """Wrap every linear that some expert scales; the other experts scale it by one."""

    def stacked(path: str, base: Linear) -> ScaledLinear:
        ones = base.weight.new_ones(base.out_features)
        return ScaledLinear(base, torch.stack([vectors.get(path, ones) for vectors in experts]))

    wrap(body, {path for vectors in experts for path in vectors}, stacked)
