"""Where the parts of a mixture go under a budget of memory, and what is fetched for a request on average.

Counts bytes; knows nothing about models.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from moesaic.errors import RecipeError

BANDWIDTH = (12e9, 2e9)
"""Bytes a second from memory to a device (PCIe 3 with 16 lanes, as measured in practice), and from a disk (NVMe)."""

DISK, RAM = "disk", "RAM"
UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) *([kmgt]?)(i?)b?", re.IGNORECASE)


def bytes_of(text: str | int, field: str) -> int:
    """A number of bytes, as 17GB (10^9 each), 16GiB (2^30) or plain digits; of a text, 17 is a unit forgotten."""
    match = _SIZE.fullmatch(str(text).strip())
    forgotten = isinstance(text, str) and match is not None and not match[2] and float(match[1]) < 1e5
    if match is None or forgotten or not float(match[1]):
        raise RecipeError("not a size of memory", field=field, expected="such as 17GB or 16GiB", got=repr(text))
    return int(float(match[1]) * (1024 if match[3] else 1000) ** UNITS[match[2].lower()])


def devices_of(vram: str | int | Sequence[int] | None, devices: int) -> list[int]:
    """The memory of each device: one figure that all share evenly, or one for each."""
    if vram is None:
        return []
    texts = vram.split(",") if isinstance(vram, str) else [vram] if isinstance(vram, int) else list(vram)
    sizes = [bytes_of(text, "vram") for text in texts]
    if len(sizes) == 1:
        return [sizes[0] // devices] * devices
    if devices not in (1, len(sizes)):
        raise RecipeError("not a size for each device", field="vram", expected=f"{devices} sizes", got=len(sizes))
    return sizes


@dataclass(frozen=True)
class Place:
    """A device, the memory of the host or the disk: its `capacity` in bytes (None: no limit), and what it `holds`."""

    name: str
    capacity: int | None
    holds: Mapping[str, int] = field(default_factory=dict)

    @property
    def used(self) -> int:
        return sum(self.holds.values())


@dataclass(frozen=True)
class Placement:
    """Who lies where. `missing`: bytes that the first place, or a device for fetched experts, is short of.

    `fetched`: bytes that a request fetches on average, `seconds` what that takes; see `placed`.
    """

    places: tuple[Place, ...]
    missing: int
    fetched: float
    seconds: float

    @property
    def fits(self) -> bool:
        return not self.missing


CORE, WORKING, FETCHED = "shared and router", "working memory", "fetched experts"


@dataclass(frozen=True)
class Demand:
    """Bytes that have to lie somewhere: a `core` that all requests share, `working` memory, and each of the experts.

    `active`: experts that a request asks at once. `everywhere`: working memory is needed on every device, as experts
    with caches of their own work where they lie.
    """

    core: int
    working: int
    experts: Mapping[str, int]
    active: int = 1
    everywhere: bool = False


@dataclass(frozen=True)
class Host:
    """The bytes of each device and of the memory (None: no limit), and the bytes a second from memory and from disk."""

    devices: Sequence[int] = ()
    ram: int | None = None
    bandwidth: tuple[float, float] = BANDWIDTH


def placed(demand: Demand, host: Host, of: int | None = None) -> Placement:
    """The core and the working memory on the first device, experts where they fit, first to last.

    Without devices the host's memory is the first place. Experts that fit on none lie in the host's memory, and those
    that do not fit there are mapped from disk; then room is kept for the `active` largest to be fetched to.

    `fetched` expects that requests choose `active` of the experts evenly (`of` as many, where others lie elsewhere),
    and that what was fetched stays until others take its room: of n experts outside, a chosen one is there already
    with probability active / n.
    """
    core, experts, active, devices, ram = demand.core, demand.experts, demand.active, host.devices, host.ram
    first = [*devices] or [ram or 0]
    names = [f"device {place}" for place in range(len(devices))] or [RAM]
    working = {WORKING: demand.working}
    held: list[dict[str, int]] = [
        {**({CORE: core} if core else {}), **working},
        *({**(working if demand.everywhere else {})} for _ in first[1:]),
    ]
    free = [capacity - sum(holds.values()) for capacity, holds in zip(first, held, strict=True)]
    short = max(0, -free[0])
    homes = _first_fit(experts, free)
    if len(homes) < len(experts):
        room = sum(sorted(experts.values(), reverse=True)[:active])
        most = free.index(max(free))
        short += max(0, room - max(free[most], 0))
        held[most][FETCHED] = room
        free[most] -= room
        homes = _first_fit(experts, free)
    for name, place in homes.items():
        held[place][name] = experts[name]
    places = [Place(name, size, holds) for name, size, holds in zip(names, first, held, strict=True)]

    outside = {name: size for name, size in experts.items() if name not in homes}
    kept = _first_fit(outside, [ram or 0]) if devices else {}
    near = {name: size for name, size in outside.items() if name in kept}
    far = {name: size for name, size in outside.items() if name not in kept}
    if devices and ram is not None:
        places.append(Place(RAM, ram, near))
    places += [Place(DISK, None, far)] if far else []
    chance = active / (of or len(experts)) * max(0.0, 1 - active / len(outside)) if outside else 0.0
    fetched = [chance * sum(some.values()) for some in (near, far)]
    seconds = sum(size / rate for size, rate in zip(fetched, host.bandwidth, strict=True))
    return Placement(tuple(places), short, sum(fetched), seconds)


def spread(demand: Demand, host: Host, hosts: int) -> Placement:
    """The same on several hosts that are alike: an expert lives on one of them.

    A request is routed on the first host and answered where its expert lives. What is shared is on every host, as
    experts work inside it; or, with `everywhere`, on the first alone, which also answers what abstains. Each expert
    goes to the host with the most room left.
    """
    cores = [demand.core if number == 0 or not demand.everywhere else 0 for number in range(hosts)]
    shares: list[dict[str, int]] = [{} for _ in range(hosts)]
    for name, size in demand.experts.items():
        taken = [own + sum(share.values()) for own, share in zip(cores, shares, strict=True)]
        shares[taken.index(min(taken))][name] = size
    parts = [
        placed(
            replace(demand, core=own, experts=share, active=min(demand.active, len(share))), host, len(demand.experts)
        )
        for own, share in zip(cores, shares, strict=True)
    ]
    places = [
        replace(place, name=f"host {number}, {place.name}")
        for number, part in enumerate(parts)
        for place in part.places
    ]
    missing, seconds = sum(part.missing for part in parts), sum(part.seconds for part in parts)
    return Placement(tuple(places), missing, sum(part.fetched for part in parts), seconds)


def _first_fit(experts: Mapping[str, int], free: Sequence[int]) -> dict[str, int]:
    """Which place each expert goes to, those that fit nowhere left out."""
    left, homes = [*free], {}
    for name, size in experts.items():
        home = next((place for place, room in enumerate(left) if size <= room), None)
        if home is not None:
            homes[name], left[home] = home, left[home] - size
    return homes
