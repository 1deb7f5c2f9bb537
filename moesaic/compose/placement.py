"""Placement of the parts of a mixture under a budget of memory, and the bytes that a request fetches on average.

Counts bytes; knows nothing about models.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from moesaic.errors import RecipeError

BANDWIDTH = (12e9, 2e9)
"""Bytes per second from memory to a device (PCIe 3 with 16 lanes, as measured), and from a disk (NVMe)."""

DISK, RAM = "disk", "RAM"
UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) *([kmgt]?)(i?)b?", re.IGNORECASE)


def bytes_of(text: str | int, field: str) -> int:
    """Parse a number of bytes: 17GB (10^9), 16GiB (2^30) or plain digits; a text such as 17 lacks its unit."""
    match = _SIZE.fullmatch(str(text).strip())
    forgotten = isinstance(text, str) and match is not None and not match[2] and float(match[1]) < 1e5
    if match is None or forgotten or not float(match[1]):
        raise RecipeError("wrong size of memory", field=field, expected="such as 17GB or 16GiB", got=repr(text))
    return int(float(match[1]) * (1024 if match[3] else 1000) ** UNITS[match[2].lower()])


def devices_of(vram: str | int | Sequence[int] | None, devices: int) -> list[int]:
    """The memory of each device, from one total that all share evenly, or from a size for each."""
    if vram is None:
        return []
    texts = vram.split(",") if isinstance(vram, str) else [vram] if isinstance(vram, int) else list(vram)
    sizes = [bytes_of(text, "vram") for text in texts]
    if len(sizes) == 1:
        return [sizes[0] // devices] * devices
    if devices not in (1, len(sizes)):
        raise RecipeError("wrong number of sizes", field="vram", expected=f"{devices} sizes", got=len(sizes))
    return sizes


@dataclass(frozen=True)
class Place:
    """A device, the memory of the host or the disk, with its `capacity` in bytes (None: no limit) and its content."""

    name: str
    capacity: int | None
    holds: Mapping[str, int] = field(default_factory=dict)

    @property
    def used(self) -> int:
        return sum(self.holds.values())


@dataclass(frozen=True)
class Placement:
    """The places and their content. `missing`: bytes that the first place, or a device for fetched experts, lacks.

    `fetched`: bytes that a request fetches on average, `seconds` the time for it; see `placed`.
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
    """Bytes to place: a `core` that all requests share, `working` memory, and each of the experts.

    `active`: experts that a request uses at once. `everywhere`: every device needs working memory, as experts with
    caches of their own compute on their own device.
    """

    core: int
    working: int
    experts: Mapping[str, int]
    active: int = 1
    everywhere: bool = False


@dataclass(frozen=True)
class Host:
    """Bytes of each device and of the memory (None: no limit), and bytes per second from memory and from disk."""

    devices: Sequence[int] = ()
    ram: int | None = None
    bandwidth: tuple[float, float] = BANDWIDTH


def placed(demand: Demand, host: Host, of: int | None = None) -> Placement:
    """Place the core and the working memory on the first device, and experts, first to last, where they fit.

    Without devices the first place is the host's memory. Experts that fit on no device go to the host's memory, or else
    are mapped from disk; a device then reserves room for fetching the `active` largest.

    `fetched` assumes that requests choose `active` of all experts evenly (`of`: their number, where some are on other
    hosts), and that fetched experts stay until others take their room: of n experts outside, a chosen one is already
    loaded with probability active / n.
    """
    core, experts, active, devices, ram = demand.core, demand.experts, demand.active, host.devices, host.ram
    first = [*devices] or [ram or 0]
    names = [f"device {number}" for number in range(len(devices))] or [RAM]
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
    cached = _first_fit(outside, [ram or 0]) if devices else {}
    near = {name: size for name, size in outside.items() if name in cached}
    far = {name: size for name, size in outside.items() if name not in cached}
    if devices and ram is not None:
        places.append(Place(RAM, ram, near))
    places += [Place(DISK, None, far)] if far else []
    chance = active / (of or len(experts)) * max(0.0, 1 - active / len(outside)) if outside else 0.0
    fetched = [chance * sum(some.values()) for some in (near, far)]
    seconds = sum(size / rate for size, rate in zip(fetched, host.bandwidth, strict=True))
    return Placement(tuple(places), short, sum(fetched), seconds)


def spread(demand: Demand, host: Host, hosts: int) -> Placement:
    """Place the parts on several equal hosts, each expert on the host with the most room left.

    The first host routes a request, the host of the chosen expert answers it. Every host has the core, inside which its
    experts compute; with `everywhere` only the first host has the core, and answers where the router abstains.
    """
    cores = [demand.core if number == 0 or not demand.everywhere else 0 for number in range(hosts)]
    shares: list[dict[str, int]] = [{} for _ in range(hosts)]
    for name, size in demand.experts.items():
        taken = [own + sum(share.values()) for own, share in zip(cores, shares, strict=True)]
        shares[taken.index(min(taken))][name] = size
    demands = [
        replace(demand, core=own, experts=share, active=min(demand.active, len(share)))
        for own, share in zip(cores, shares, strict=True)
    ]
    parts = [placed(one, host, len(demand.experts)) for one in demands]
    places = [replace(at, name=f"host {n}, {at.name}") for n, part in enumerate(parts) for at in part.places]
    totals = (sum(getattr(part, key) for part in parts) for key in ("missing", "fetched", "seconds"))
    return Placement(tuple(places), *totals)


def _first_fit(experts: Mapping[str, int], free: Sequence[int]) -> dict[str, int]:
    """The index of the place of each expert, experts that fit nowhere left out."""
    left, homes = [*free], {}
    for name, size in experts.items():
        home = next((place for place, room in enumerate(left) if size <= room), None)
        if home is not None:
            homes[name], left[home] = home, left[home] - size
    return homes
