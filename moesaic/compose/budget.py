"""The memory budget in which a mixture runs, computed from its plan.

Knows nothing about how experts are fetched: see `residency`.
"""

from pathlib import Path

import torch

from moesaic.compose.composition import described
from moesaic.compose.memory import LIBRARIES
from moesaic.compose.placement import bytes_of, devices_of
from moesaic.compose.plan import computed, plan, types_of, working
from moesaic.errors import RecipeError
from moesaic.residency.fetching import Budget


def budget(folder: Path, vram: str | int | None, ram: str | int | None) -> Budget:
    """Compute the memory that a mixture leaves for experts and for answers; nothing is loaded.

    `vram`: memory of the one device; without it the host computes, in `ram`. Raises MemoryLimitError with the bytes of
    `plan` where base, router, the experts of one row and the working memory of the plan do not fit.
    """
    device = None if vram is None else device_for(vram)
    planned = plan(folder, vram=vram, ram=ram)
    planned.require()
    found = described((folder,), None, None)
    width = computed(found, *types_of(found, None)).itemsize
    sizes = sorted((part.bytes for part in planned.parts if part.role == "expert"), reverse=True)
    held = sum(sizes) if found.kind and found.kind.always_held else 0
    host = 0 if ram is None else bytes_of(ram, "ram")
    first = host - LIBRARIES if vram is None else devices_of(vram, 1)[0]

    def answering(rows: int, tokens: int) -> int:
        return sum(part.bytes for part in working(found, rows, tokens, planned.active, width))

    return Budget(
        room=first - planned.bytes_of("shared", "router") - held,
        kept=planned.working,
        least=0 if held else sum(sizes[: planned.active]),
        working=answering,
        device=device,
        near=host if device else 0,
    )


def device_for(vram: str | int) -> torch.device:
    if len(devices_of(vram, 1)) > 1:
        hint = "give the memory of one device; `moesaic plan` counts with several"
        raise RecipeError("a mixture runs on one device", field="vram", expected="one size", got=str(vram), hint=hint)
    if not torch.cuda.is_available():
        hint = "leave it out: the host then computes in --ram"
        raise RecipeError("no accelerator on this machine", field="vram", got=str(vram), hint=hint)
    return torch.device("cuda")
