"""Plans of compositions: their memory, the compatibility of their parts, and the placement of these.

Reads configs and headers alone, before anything is loaded. Knows nothing about terminals.
"""

import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch

from moesaic.compose import memory
from moesaic.compose.composition import Composition, described, with_lora
from moesaic.compose.dry_steps import dry_step
from moesaic.compose.placement import BANDWIDTH, Demand, Host, Placement, bytes_of, devices_of, placed, spread
from moesaic.errors import CompatibilityError, MemoryLimitError, RecipeError
from moesaic.interop.decoders import type_of
from moesaic.kinds import sites
from moesaic.kinds.compatibility import Difference

CONTEXT = 4096
"""Default tokens of a row; the context of the base where that is shorter."""

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
Role = Literal["shared", "expert", "router", "working"]


@dataclass(frozen=True)
class Part:
    """A part that takes memory: for all requests, for one expert, for the router, or only during a request."""

    name: str
    role: Role
    parameters: int
    bytes: int


@dataclass(frozen=True)
class Plan:
    """The result of `moesaic.plan`. Bytes are those of memory, not of files.

    `dtype`: the type of computation. `resident`: bytes of a loaded composition between two requests; `working`: bytes
    on top while it answers `batch` rows of `context` tokens or, with `training`, learns from them. `recompute`: as in a
    recipe's `train`. `by_dtype`: resident bytes in other types. `differences`: all, allowed ones included. `placement`:
    None without a budget.
    """

    base: str
    site: str | None
    dtype: str
    context: int
    batch: int
    active: int
    training: bool
    recompute: bool
    parts: tuple[Part, ...]
    by_dtype: dict[str, int]
    differences: tuple[Difference, ...]
    placement: Placement | None
    notes: tuple[str, ...]

    @property
    def resident(self) -> int:
        return self.bytes_of("shared", "expert", "router")

    @property
    def working(self) -> int:
        return self.bytes_of("working")

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in self.parts)

    @property
    def refused(self) -> tuple[Difference, ...]:
        return tuple(difference for difference in self.differences if difference.allowed is None)

    @property
    def compatible(self) -> bool:
        return not self.refused

    @property
    def fits(self) -> bool | None:
        return None if self.placement is None else self.placement.fits

    def bytes_of(self, *roles: Role) -> int:
        return sum(part.bytes for part in self.parts if part.role in roles)

    def require(self) -> None:
        """Raise CompatibilityError with the first difference, or MemoryLimitError with the missing bytes."""
        if self.refused:
            first, more = self.refused[0], len(self.refused) - 1
            what = "these models cannot be composed" if self.site else "the model does not match its config"
            what += f" ({more} more differences)" if more else ""
            raise CompatibilityError(what, path=first.model, field=first.field, expected=first.base, got=first.own)
        if self.placement and self.placement.missing:
            places = self.placement.places
            over = (place for place in places if place.capacity is not None and place.used > place.capacity)
            full = next(over, places[0])
            raise MemoryLimitError(
                f"the plan does not fit: {self.placement.missing:,} bytes are missing",
                field=full.name,
                expected=f"at most {full.capacity:,} bytes",
                got=f"{full.used:,}",
                hint="use more memory, fewer rows or tokens at once, or a smaller dtype",
            )

    def told(self) -> dict[str, Any]:
        own = asdict(self)
        placement = own.pop("placement")
        totals = {"parameters": self.parameters, "resident": self.resident, "working": self.working}
        own |= {"compatible": self.compatible, "fits": self.fits, **totals}
        return own | {"placement": placement}


@dataclass(frozen=True)
class Load:
    """Rows that are answered, or with `training` learned from, at once.

    `context`: tokens of each; by default `CONTEXT`, or that of a base with less. `active`: experts that answer a row;
    by default as the router selects. `recompute`: as in a recipe's `train`.
    """

    batch: int
    context: int | None
    active: int | None
    training: bool
    recompute: bool = False

    def __post_init__(self) -> None:
        if self.recompute and not self.training:
            raise RecipeError("has no effect here", field="recompute", hint="it goes with training")
        require_counts(batch=self.batch, context=self.context, active=self.active)

    def tokens(self, most: int) -> int:
        if self.context is not None and self.context > most:
            what = "longer than the model's context"
            raise RecipeError(what, field="context", expected=f"<= {most}", got=self.context)
        return self.context or min(CONTEXT, most)


@dataclass(frozen=True)
class Hardware:
    """Hosts of equal hardware: `vram`, `ram` and `devices` of each; `bandwidth` as in `plan`."""

    vram: str | int | Sequence[int] | None
    ram: str | int | None
    devices: int
    hosts: int
    bandwidth: tuple[float, float]

    def __post_init__(self) -> None:
        require_counts(devices=self.devices, hosts=self.hosts)
        if min(self.bandwidth) <= 0:
            raise RecipeError("wrong bandwidth", field="bandwidth", expected="> 0", got=self.bandwidth)

    @property
    def limited(self) -> bool:
        return self.vram is not None or self.ram is not None

    def placed(self, demand: Demand) -> Placement:
        """Place the parts; a host that computes also has to hold its libraries."""
        if self.vram is None:
            demand = replace(demand, working=demand.working + memory.LIBRARIES)
        ram = None if self.ram is None else bytes_of(self.ram, "ram")
        host = Host(devices_of(self.vram, self.devices), ram, self.bandwidth)
        return spread(demand, host, self.hosts) if self.hosts > 1 else placed(demand, host)


def require_counts(**counts: int | None) -> None:
    for field, count in counts.items():
        if count is not None and count < 1:
            raise RecipeError("wrong number", field=field, expected=">= 1", got=count)


def plan(
    *models: str | os.PathLike[str],
    base: str | os.PathLike[str] | None = None,
    site: str | None = None,
    vram: str | int | Sequence[int] | None = None,
    ram: str | int | None = None,
    devices: int = 1,
    context: int | None = None,
    batch: int = 1,
    training: bool = False,
    dtype: str | None = None,
    active: int | None = None,
    bandwidth: tuple[float, float] = BANDWIDTH,
    hosts: int = 1,
    rank: int | None = None,
    recompute: bool = False,
    bits: int | None = None,
) -> Plan:
    """Compute the memory of a composition, and whether its models fit each other and a budget; nothing is loaded.

    `models`: folders of models or adapters, or published sizes such as llama-3-8b; or one recipe, mixture or run.
    `base`: the shared model (default: the first of whole models). `site`: model, ffn or linear (default: that of the
    adapters or blocks, else model). `vram`: of all devices together ("17GB"), shared evenly, or of each ("9GB,8GB").
    `dtype`: by default that of `load` and `load_model`, bfloat16 for published sizes. `active`: experts that answer a
    row (default: as the router selects, or 1). `bandwidth`: bytes per second from memory to a device, and from disk.
    `hosts`: machines that share the experts; `vram`, `ram` and `devices` are those of each. `rank`: of one more expert,
    a LoRA on all targets. `recompute`: with `training`, layers recompute their activations. `bits`: of each value in
    the matrices of the base's layers (default: all, or those of the recipe).
    """
    for field, value, known in (("site", site, sites()), ("dtype", dtype, [*TYPES]), ("bits", bits, (8, 4))):
        if value is not None and value not in known:
            raise RecipeError("unknown", field=field, expected=" or ".join(map(str, known)), got=repr(value))
    require_counts(rank=rank)
    load, hardware = Load(batch, context, active, training, recompute), Hardware(vram, ram, devices, hosts, bandwidth)
    found = described(models, base, site)
    found = replace(with_lora(found, rank) if rank else found, bits=bits or found.bits)
    if found.bits and training and (found.kind is None or found.kind.trains_weights):
        hint = "leave bits out, or plan an adapter with rank"
        raise RecipeError("a whole model is trained in all its bits", field="bits", got=found.bits, hint=hint)
    return planned(found, dtype, load, hardware)


def planned(found: Composition, dtype: str | None, load: Load, hardware: Hardware) -> Plan:
    """Plan a composition."""
    types, unstored = types_of(found, dtype)
    computes = computed(found, types, unstored)
    tokens = load.tokens(found.base.config.context)
    asked = min(load.active or found.active, max(1, len(found.experts)))
    answers = working(found, load.batch, tokens, asked, computes.itemsize)
    needs = learning(found, load, tokens, computes) if load.training else answers
    made = Plan(
        base=found.base.name,
        site=found.kind.site if found.kind else None,
        dtype=str(computes).removeprefix("torch."),
        context=tokens,
        batch=load.batch,
        active=asked,
        training=load.training,
        recompute=load.recompute,
        parts=(*weights(found, types, unstored), *needs),
        by_dtype={name: resident(found, TYPES[name]) for name in ("float32", "bfloat16")},
        differences=found.findings,
        placement=None,
        notes=found.notes,
    )
    if not hardware.limited:
        return made
    demand = Demand(
        core=made.bytes_of("shared", "router"),
        working=made.working,
        experts={part.name: part.bytes for part in made.parts if part.role == "expert"},
        active=len(found.experts) if found.kind and found.kind.holds_all(found.level) else asked,
        everywhere=found.kind is not None and not found.kind.shares_trunk,
    )
    return replace(made, placement=hardware.placed(demand))


def types_of(found: Composition, dtype: str | None) -> tuple[memory.Types, torch.dtype]:
    """The type of computation for each stored type; and the type of tensors without a file.

    `load_model` computes in the one type of the model, but float32 for float16; `load` reads a mixture as float32.
    """
    if dtype is not None:
        return lambda stored: TYPES[dtype], TYPES[dtype]
    if found.base.folder is None and not found.base.stored:
        return lambda stored: torch.bfloat16, torch.bfloat16
    if found.kind is None:
        whole = type_of(found.base.found, [*found.base.stored.values()])
        return lambda stored: torch.float32 if whole == torch.float16 else whole, torch.bfloat16
    return lambda stored: torch.float32, torch.float32


def computed(found: Composition, types: memory.Types, unstored: torch.dtype) -> torch.dtype:
    """The type of states: that of most weights of the base."""
    counts = Counter[torch.dtype]()
    for name, shape in found.base.shapes.items():
        counts[types(found.base.stored.get(name, unstored))] += math.prod(shape)
    return counts.most_common(1)[0][0]


def weights(found: Composition, types: memory.Types, unstored: torch.dtype) -> list[Part]:
    """Parts that stay in memory: base, experts and router."""
    width = computed(found, types, unstored).itemsize
    shared = memory.by_part(found.base, types, unstored, found.bits)
    parts = [Part(name, "shared", *both) for name, both in shared.items()]
    if turned := memory.rotations(found.base.config, width):
        parts.append(Part("rotary positions", "shared", 0, turned))
    stacks = memory.stacked([expert.footprint.pairs for expert in found.experts if expert.footprint.pairs is not None])
    for expert in found.experts:
        size = sum(count * types(stored).itemsize for stored, count in expert.footprint.counts.items())
        size += stacks * width if expert.footprint.pairs is not None else 0
        size += memory.rotations(expert.footprint.config, width) if expert.footprint.config and size else 0
        parts.append(Part(expert.name, "expert", expert.parameters, size))
    if found.kind is not None:
        parts.append(Part("router", "router", found.router, found.router * 4))
    return parts


def working(found: Composition, rows: int, tokens: int, active: int, width: int) -> list[Part]:
    """Parts in memory while rows are answered."""
    config = found.base.config
    own = [config, *(expert.footprint.config for expert in found.experts if expert.footprint.config is not None)]
    readers = len(own) if found.level == "token" else active if own[1:] else 1
    cached = sum(sorted((memory.cache(one, rows, tokens, width) for one in own), reverse=True)[:readers])
    most = max(memory.activations(one, rows, tokens, width) for one in own)
    return [Part("key/value cache", "working", 0, cached), Part("activations", "working", 0, most)]


def learning(found: Composition, load: Load, tokens: int, dtype: torch.dtype) -> list[Part]:
    """Parts in memory while the largest expert, or a single model, is trained."""
    largest = max(found.experts, key=lambda expert: expert.parameters, default=None)
    expert = None if largest is None else largest.footprint
    unpacked = memory.unpacking(found.base, found.bits, dtype.itemsize)
    step = dry_step(found.base.config, expert, load.batch, tokens, dtype, load.recompute)
    return [
        Part("activations", "working", 0, step.kept),
        Part("logits, gradients, a layer at work", "working", 0, step.more + unpacked),
        Part("AdamW and the best values", "working", 0, memory.BESIDE * step.trained),
    ]


def resident(found: Composition, dtype: torch.dtype) -> int:
    """Bytes between two requests if all weights were of one type."""
    return sum(part.bytes for part in weights(found, lambda stored: dtype, dtype))
