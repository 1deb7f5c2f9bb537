"""The memory that a mixture is run in: what its plan says, told to who loads it.

Knows nothing about who fetches what; that is done in `weights`.
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
    """What a mixture's folder leaves of this memory for experts and for answers; nothing is loaded.

    `vram`: of the one device that is used; without it the host computes, in `ram`. Raises MemoryLimitError with the
    bytes of `plan` where base, router, the experts of one row and the row of the plan do not fit.
    """
    device = None if vram is None else device_for(vram)
    told = plan(folder, vram=vram, ram=ram)
    told.require()
    found = described((folder,), None, None)
    width = computed(found, *types_of(found, None)).itemsize
    sizes = sorted((part.bytes for part in told.parts if part.role == "expert"), reverse=True)
    held = sum(sizes) if found.kind and found.kind.always_held else 0
    host = 0 if ram is None else bytes_of(ram, "ram")
    first = host - LIBRARIES if vram is None else devices_of(vram, 1)[0]

    def answering(rows: int, tokens: int) -> int:
        """The cache, in which rows come and go without copies, and activations."""
        return sum(part.bytes for part in working(found, rows, tokens, told.active, width, training=False))

    return Budget(
        room=first - told.bytes_of("shared", "router") - held,
        kept=told.working,
        least=0 if held else sum(sizes[: told.active]),
        working=answering,
        device=device,
        near=host if device else 0,
    )


def device_for(vram: str | int) -> torch.device:
    """The device that has this memory."""
    if len(devices_of(vram, 1)) > 1:
        hint = "give the memory of one; `moesaic plan` counts with several"
        raise RecipeError("a mixture runs on one device", field="vram", expected="one size", got=str(vram), hint=hint)
    if not torch.cuda.is_available():
        hint = "leave it out: --ram is the memory of the host, which computes then"
        raise RecipeError("there is no device with memory of its own here", field="vram", got=str(vram), hint=hint)
    return torch.device("cuda")
