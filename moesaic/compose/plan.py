"""What a composition weighs, whether its parts fit each other, and where they go: before anything is loaded.

From configs and headers alone. Knows nothing about terminals.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch

from moesaic.compose import memory
from moesaic.compose.composition import Composition, Planned, described
from moesaic.compose.placement import BANDWIDTH, Demand, Host, Placement, bytes_of, devices_of, placed, spread
from moesaic.errors import CompatibilityError, MemoryLimitError, RecipeError
from moesaic.kinds import sites
from moesaic.kinds.compatibility import Difference

CONTEXT = 4096
"""Tokens of a row where none are given, or the context of the base if that is shorter."""

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
Role = Literal["shared", "expert", "router", "working"]


@dataclass(frozen=True)
class Part:
    """Something that takes memory. `role`: in the way of all requests, of some, or only while one is answered."""

    name: str
    role: Role
    parameters: int
    bytes: int


@dataclass(frozen=True)
class Plan:
    """The result of `moesaic.plan`. Bytes are those of memory, not of files.

    `dtype`: what weights are computed in. `resident`: bytes that a loaded composition takes between two requests;
    `working`: on top of it while `batch` rows of `context` tokens are answered or, with `training`, learned from.
    `by_dtype`: what would be resident in other types. `differences`: all, allowed ones too. `placement`: None without a
    budget.
    """

    base: str
    site: str | None
    dtype: str
    context: int
    batch: int
    active: int
    training: bool
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
        """The differences that keep these models apart."""
        return tuple(difference for difference in self.differences if difference.allowed is None)

    @property
    def compatible(self) -> bool:
        return not self.refused

    @property
    def fits(self) -> bool | None:
        """Whether it goes into the budget; None where there is none."""
        return None if self.placement is None else self.placement.fits

    def bytes_of(self, *roles: Role) -> int:
        return sum(part.bytes for part in self.parts if part.role in roles)

    def require(self) -> None:
        """Raises CompatibilityError, naming what differs, or MemoryLimitError, naming what is short."""
        if self.refused:
            first, more = self.refused[0], len(self.refused) - 1
            what = "these models cannot be composed" if self.site else "the model is not what its config says"
            raise CompatibilityError(
                what + (f", and {more} differences more" if more else ""),
                path=first.model,
                field=first.field,
                expected=first.base,
                got=first.own,
            )
        if self.placement and self.placement.missing:
            places = self.placement.places
            full = (place for place in places if place.capacity is not None and place.used > place.capacity)
            first_place = next(full, places[0])
            raise MemoryLimitError(
                f"it does not fit: {self.placement.missing:,} bytes are missing",
                field=first_place.name,
                expected=f"at most {first_place.capacity:,} bytes",
                got=f"{first_place.used:,}",
                hint="more memory, fewer rows or tokens at once, or a smaller type of number",
            )

    def told(self) -> dict[str, Any]:
        """Return all of it as plain data, for JSON."""
        own = asdict(self)
        placement = own.pop("placement")
        totals = {"parameters": self.parameters, "resident": self.resident, "working": self.working}
        own |= {"compatible": self.compatible, "fits": self.fits, **totals}
        return own | {"placement": placement}


@dataclass(frozen=True)
class Load:
    """Rows that are answered, or with `training` learned from, at once.

    `context`: tokens of each; None: `CONTEXT`, or the base's if that is shorter. `active`: experts that answer a row;
    None: as the router selects.
    """

    batch: int
    context: int | None
    active: int | None
    training: bool

    def __post_init__(self) -> None:
        require_counts(batch=self.batch, context=self.context, active=self.active)

    def tokens(self, most: int) -> int:
        """Tokens of a row, for a model that reads at most so many."""
        if self.context is not None and self.context > most:
            raise RecipeError(
                "longer than the model's context", field="context", expected=f"<= {most}", got=self.context
            )
        return self.context or min(CONTEXT, most)


@dataclass(frozen=True)
class Hardware:
    """Machines, `hosts` of them: `vram`, `ram` and `devices` are those of each, `bandwidth` is as `plan` has it."""

    vram: str | int | Sequence[int] | None
    ram: str | int | None
    devices: int
    hosts: int
    bandwidth: tuple[float, float]

    def __post_init__(self) -> None:
        require_counts(devices=self.devices, hosts=self.hosts)
        if min(self.bandwidth) <= 0:
            raise RecipeError("nothing would ever arrive", field="bandwidth", expected="> 0", got=self.bandwidth)

    @property
    def limited(self) -> bool:
        """Whether there is a budget of memory."""
        return self.vram is not None or self.ram is not None

    def placed(self, demand: Demand) -> Placement:
        """Where the parts go; libraries count where they compute on the host."""
        if self.vram is None:
            demand = replace(demand, working=demand.working + memory.LIBRARIES)
        ram = None if self.ram is None else bytes_of(self.ram, "ram")
        host = Host(devices_of(self.vram, self.devices), ram, self.bandwidth)
        return spread(demand, host, self.hosts) if self.hosts > 1 else placed(demand, host)


def require_counts(**counts: int | None) -> None:
    """Refuse a number below 1, by its name."""
    for field, count in counts.items():
        if count is not None and count < 1:
            raise RecipeError("not a number of them", field=field, expected=">= 1", got=count)


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
) -> Plan:
    """Compute what models weigh together, and whether they fit each other and a budget; nothing is loaded.

    `models`: folders of models or adapters, or published sizes such as llama-3-8b; or one recipe, mixture or run.
    `base`: what they share; of whole models else the first of them. `site`: model, ffn or linear; else linear of
    adapters, or model. `vram`: of all devices together ("17GB"), shared evenly, or of each ("9GB,8GB"). `dtype`: else
    as `load` and `load_model` compute, published sizes in bfloat16. `active`: experts that answer a row; else as the
    router selects, or 1. `bandwidth`: bytes a second from memory to a device, and from disk. `hosts`: machines that
    share the experts; `vram`, `ram` and `devices` are those of each.
    """
    for field, value, known in (("site", site, sites()), ("dtype", dtype, [*TYPES])):
        if value is not None and value not in known:
            raise RecipeError("unknown", field=field, expected=" or ".join(known), got=repr(value))
    load, hardware = Load(batch, context, active, training), Hardware(vram, ram, devices, hosts, bandwidth)
    return planned(described(models, base, site), dtype, load, hardware)


def planned(found: Composition, dtype: str | None, load: Load, hardware: Hardware) -> Plan:
    """The plan of a composition that is described already."""
    types, unstored = types_of(found, dtype)
    computes = computed(found, types, unstored)
    tokens = load.tokens(found.base.config.context)
    asked = min(load.active or found.active, max(1, len(found.experts)))
    needs = working(found, load.batch, tokens, asked, computes.itemsize, load.training)
    told = Plan(
        base=found.base.name,
        site=found.kind.site if found.kind else None,
        dtype=str(computes).removeprefix("torch."),
        context=tokens,
        batch=load.batch,
        active=asked,
        training=load.training,
        parts=(*weights(found, types, unstored), *needs),
        by_dtype={name: resident(found, TYPES[name]) for name in ("float32", "bfloat16")},
        differences=found.findings,
        placement=None,
        notes=found.notes,
    )
    if not hardware.limited:
        return told
    demand = Demand(
        core=told.bytes_of("shared", "router"),
        working=told.working,
        experts={part.name: part.bytes for part in told.parts if part.role == "expert"},
        active=len(found.experts) if found.kind and found.kind.always_held else asked,
        everywhere=found.kind is not None and not found.kind.shares_trunk,
    )
    return replace(told, placement=hardware.placed(demand))


def types_of(found: Composition, dtype: str | None) -> tuple[memory.Types, torch.dtype]:
    """The type that a stored one is computed in; and that of sizes which nobody stored.

    `load_model` computes as stored, but float16 as float32; `load` reads a mixture as float32.
    """
    if dtype is not None:
        return lambda stored: TYPES[dtype], TYPES[dtype]
    if found.base.folder is None and not found.base.stored:
        return lambda stored: torch.bfloat16, torch.bfloat16
    if found.kind is None:
        return lambda stored: torch.float32 if stored == torch.float16 else stored, torch.bfloat16
    return lambda stored: torch.float32, torch.float32


def computed(found: Composition, types: memory.Types, unstored: torch.dtype) -> torch.dtype:
    """The type that states are in: that of most of the base's weights."""
    counts: dict[torch.dtype, int] = {}
    for name, shape in found.base.shapes.items():
        dtype = types(found.base.stored.get(name, unstored))
        counts[dtype] = counts.get(dtype, 0) + math.prod(shape)
    return max(counts, key=lambda dtype: counts[dtype])


def weights(found: Composition, types: memory.Types, unstored: torch.dtype) -> list[Part]:
    """Base, experts and router, each with what it takes in memory."""
    width = computed(found, types, unstored).itemsize
    shared = memory.by_part(found.base, types, unstored)
    parts = [Part(name, "shared", *both) for name, both in shared.items()]
    if turned := memory.rotations(found.base.config, width):
        parts.append(Part("rotary positions", "shared", 0, turned))
    stacks = memory.stacked([expert.footprint.pairs for expert in found.experts if expert.footprint.pairs is not None])
    for expert in found.experts:
        size = sum(count * types(stored).itemsize for stored, count in expert.footprint.counts.items())
        size += stacks * width if expert.footprint.pairs is not None else 0
        size += memory.rotations(expert.footprint.config, width) if expert.footprint.config and size else 0
        parts.append(Part(expert.name, "expert", parameters_of(expert), size))
    if found.kind is not None:
        parts.append(Part("router", "router", found.router, found.router * 4))
    return parts


def working(found: Composition, rows: int, tokens: int, active: int, width: int, training: bool) -> list[Part]:
    """What is needed while rows are answered, or while one expert (of a model by itself, all of it) is trained."""
    config = found.base.config
    if training:
        sizes = [parameters_of(expert) for expert in found.experts]
        trained = max(sizes, default=sum(math.prod(shape) for shape in found.base.shapes.values()))
        return [
            Part("activations", "working", 0, memory.saved_activations(config, rows, tokens, width)),
            Part("gradients and AdamW", "working", 0, memory.optimiser(trained, width)),
        ]
    own = [config, *(expert.footprint.config for expert in found.experts if expert.footprint.config is not None)]
    readers = len(own) if found.level == "token" else active if own[1:] else 1
    kept = sum(sorted((memory.cache(one, rows, tokens, width) for one in own), reverse=True)[:readers])
    most = max(memory.activations(one, rows, tokens, width) for one in own)
    return [Part("key/value cache", "working", 0, kept), Part("activations", "working", 0, most)]


def parameters_of(expert: Planned) -> int:
    return memory.pairs(expert.footprint.pairs or {}) + sum(expert.footprint.counts.values())


def resident(found: Composition, dtype: torch.dtype) -> int:
    """Bytes between two requests if all weights were of one type."""
    return sum(part.bytes for part in weights(found, lambda stored: dtype, dtype))
