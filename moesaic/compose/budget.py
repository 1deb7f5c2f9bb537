"""The memory budget in which a mixture runs, computed from its plan.

Knows nothing about how experts are fetched: see `residency`.
"""

from pathlib import Path

from moesaic.compose.composition import described
from moesaic.compose.memory import LIBRARIES
from moesaic.compose.placement import bytes_of, devices_of
from moesaic.compose.plan import computed, plan, types_of, working
from moesaic.errors import RecipeError
from moesaic.hardware import AUTO, CPU, HOST, Compute, chosen
from moesaic.residency.fetching import Budget


def computing(
    device: str, dtype: str, vram: str | int | None, ram: str | int | None, bits: int | None = None
) -> Compute:
    """Where a mixture computes, and in which type: on the host where `ram` alone is limited."""
    if vram is not None:
        require_one(vram)
    host = ram is not None and vram is None
    found = chosen(CPU if host and device == AUTO else device, dtype, bits)
    if host and found.device.type != CPU:
        hint = "add the memory of the device, as in vram='17GB'"
        raise RecipeError("ram alone limits the CPU", field="ram", got=f"device {device}", hint=hint)
    if vram is not None and found.device.type == CPU:
        hint = "leave it out: the host then computes in --ram"
        raise RecipeError("no accelerator on this machine", field="vram", got=str(vram), hint=hint)
    return found


def budget(folder: Path, vram: str | int | None, ram: str | int | None, compute: Compute = HOST) -> Budget:
    """Compute the memory that a mixture leaves for experts and for answers; nothing is loaded.

    `vram`: memory of the one device of `compute`; without it the host computes, in `ram`. Raises MemoryLimitError with
    the bytes of `plan` where base, router, the experts of one row and the working memory of the plan do not fit.
    """
    dtype = compute.key.get("dtype")
    planned = plan(folder, vram=vram, ram=ram, dtype=dtype)
    planned.require()
    found = described((folder,), None, None)
    width = computed(found, *types_of(found, dtype)).itemsize
    sizes = sorted((part.bytes for part in planned.parts if part.role == "expert"), reverse=True)
    held = sum(sizes) if found.kind and found.kind.holds_all(found.level) else 0
    host = 0 if ram is None else bytes_of(ram, "ram")
    first = host - LIBRARIES if vram is None else devices_of(vram, 1)[0]

    def answering(rows: int, tokens: int) -> int:
        return sum(part.bytes for part in working(found, rows, tokens, planned.active, width))

    return Budget(
        room=first - planned.bytes_of("shared", "router") - held,
        kept=planned.working,
        least=0 if held else sum(sizes[: planned.active]),
        working=answering,
        device=None if vram is None else compute.device,
        near=0 if vram is None else host,
    )


def require_one(vram: str | int) -> None:
    """Refuse the memory of several devices."""
    if len(devices_of(vram, 1)) > 1:
        hint = "give the memory of one device; `moesaic plan` counts with several"
        raise RecipeError("a mixture runs on one device", field="vram", expected="one size", got=str(vram), hint=hint)
