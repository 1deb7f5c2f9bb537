"""Where tensors are computed and in which type: what `auto` means on this machine, and which devices exist here.

Knows nothing about models. torch keeps the names of devices; this file asks it, and refuses what it cannot use.
"""

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from moesaic.errors import MoesaicWarning, RecipeError, nearest

AUTO, CPU, DML = "auto", "cpu", "dml"
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
UNITS = ("avx512_bf16", "amx_bf16", "bf16")
"""Capabilities of processors that multiply in bfloat16, as torch names them."""
ACCELERATORS: dict[str, Callable[[], bool]] = {
    "cuda": torch.cuda.is_available,
    "xpu": torch.xpu.is_available,
    "mps": torch.backends.mps.is_available,
}
"""The devices that `auto` prefers to the CPU, in this order, and whether this machine has one."""
FUSED = (CPU, *ACCELERATORS)
"""The devices on which torch has fused optimisers."""
COUNTED: dict[str, Callable[[], int]] = {"cuda": torch.cuda.device_count, "xpu": torch.xpu.device_count}
"""The devices that a machine may have several of, each with a generator of its own, and their number."""
LOCAL_RANK = "LOCAL_RANK"
"""The variable with the number of a process among those of its machine: of a pool, or of `torchrun`. Processes that
train side by side have a device each, in turn."""
UNTESTED = "device {}: this package was never tested on it"

M = TypeVar("M", bound=nn.Module)
log = logging.getLogger("moesaic")


@dataclass(frozen=True)
class Compute:
    """The device and the type to compute in.

    `dtype` is that of a frozen base, of experts that only answer, and of the products of models that are trained.
    Adapters in training, routers, heads, weights of models that are trained, and losses are float32 whatever it is.
    `bits`: 8 or 4, of each value in the matrices of a frozen base's layers; None: all.
    """

    device: torch.device
    dtype: torch.dtype = torch.float32
    bits: int | None = None

    def __str__(self) -> str:
        return f"{self.device} in {word_of(self.dtype)}" + (f", layers in {self.bits} bits" if self.bits else "")

    @property
    def lower(self) -> bool:
        """Whether the type is narrower than float32."""
        return self.dtype != torch.float32

    @property
    def trained(self) -> "Compute":
        """The same device in float32 with all bits, for weights that are trained."""
        return replace(self, dtype=torch.float32, bits=None)

    @property
    def whole(self) -> "Compute":
        """The same with all bits, for a caller that changes matrices."""
        return replace(self, bits=None)

    @property
    def key(self) -> dict[str, Any]:
        """What a result depends on: a type narrower than float32, and fewer bits, but never the device."""
        return ({"dtype": word_of(self.dtype)} if self.lower else {}) | ({"bits": self.bits} if self.bits else {})

    def put(self, module: M) -> M:
        """Move a module to the device and, if the type is narrower than float32, into the type."""
        return module.to(self.device, self.dtype if self.lower else None)


HOST = Compute(torch.device(CPU))
"""The CPU in float32."""


def word_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def exact(dtype: torch.dtype) -> torch.dtype:
    """The type of values that must not be rounded beside tensors of `dtype`: float32, or float64 beside that."""
    return torch.promote_types(dtype, torch.float32)


def chosen(device: str = AUTO, dtype: str = "float32", bits: int | None = None) -> Compute:
    """The device and the type that these words mean on this machine; logs the choice.

    Raises RecipeError for an unknown word or number, and for a device that this machine does not have.
    """
    for field, value in (("device", device), ("dtype", dtype)):
        if not isinstance(value, str):
            got = f"{type(value).__name__} {value!r}"
            raise RecipeError("wrong type", field=field, expected="a word", got=got)
    if dtype not in (AUTO, *TYPES):
        expected, hint = " or ".join((AUTO, *TYPES)), nearest(dtype, [*TYPES])
        raise RecipeError("unknown type", field="dtype", expected=expected, got=dtype, hint=hint)
    if bits not in (None, 8, 4):
        raise RecipeError("unknown number", field="bits", expected="8 or 4", got=repr(bits))
    on = named(device)
    found = Compute(on, usual(on) if dtype == AUTO else TYPES[dtype], bits)
    if found.dtype == torch.float16 and on.type == CPU:
        text = "float16 on a CPU: its products are up to 100 times slower than those in float32"
        warnings.warn(f"{text}; write dtype: float32", MoesaicWarning, stacklevel=2)
    log.info("computes on %s", found)
    return found


def usual(device: torch.device) -> torch.dtype:
    """bfloat16 where a device has units for it; float32 elsewhere, where bfloat16 is slower."""
    if device.type == CPU:
        capabilities = torch.cpu.get_capabilities()
        fast = any(capabilities.get(unit) for unit in UNITS)
    else:
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if fast else torch.float32


def named(word: str) -> torch.device:
    """The device of a word: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`, `xpu`, `dml`, or another name that torch knows.

    Of several devices, a word without a number means a process's own: see LOCAL_RANK. Raises RecipeError for an unknown
    word and for a device that this machine does not have. Warns of a device that this package was never tested on.
    """
    if word == AUTO:
        word = next((kind for kind, exists in ACCELERATORS.items() if exists()), CPU)
    kind, _, number = word.partition(":")
    if kind == DML:
        return directml(word, int(number) if number.isdecimal() else 0)
    try:
        device = torch.device(word)
    except RuntimeError:
        known = [AUTO, CPU, *ACCELERATORS, DML]
        expected, hint = f"{', '.join(known)}, or another name that torch knows", nearest(kind, known)
        raise RecipeError("unknown device", field="device", expected=expected, got=word, hint=hint) from None
    if kind in ACCELERATORS and not ACCELERATORS[kind]():
        raise missing(word)
    if kind in COUNTED and device.index is not None and device.index >= COUNTED[kind]():
        raise missing(word)
    if kind in COUNTED and device.index is None and LOCAL_RANK in os.environ:
        return torch.device(kind, int(os.environ[LOCAL_RANK]) % COUNTED[kind]())
    if kind not in FUSED:
        require_usable(device, word)
        warnings.warn(UNTESTED.format(word), MoesaicWarning, stacklevel=3)
    return device


def choices() -> list[str]:
    """The devices of this machine, as a recipe writes them."""
    found = [kind for kind, exists in ACCELERATORS.items() if exists()]
    several = [f"{kind}:{number}" for kind in found if kind in COUNTED for number in range(1, COUNTED[kind]())]
    return [CPU, *found, *several]


def missing(word: str) -> RecipeError:
    expected = " or ".join([AUTO, *choices()])
    return RecipeError("this machine has no such device", field="device", expected=expected, got=word)


def require_usable(device: torch.device, word: str) -> None:
    """Raise RecipeError where torch knows the name of a device but computes nothing on it here."""
    try:
        usable = torch.ones(2, device=device).add(1).sum().item() == 4
    except (RuntimeError, NotImplementedError, AssertionError, ImportError):
        usable = False
    if not usable:
        raise missing(word)


def directml(word: str, number: int) -> torch.device:
    """A device of the package torch-directml, which gives torch the accelerators of Windows."""
    try:
        import torch_directml  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        hint = "pip install torch-directml, or choose another device"
        expected = "the package torch-directml"
        raise RecipeError("needs a package", field="device", expected=expected, got=word, hint=hint) from None
    warnings.warn(UNTESTED.format(word), MoesaicWarning, stacklevel=4)
    return torch_directml.device(number)


def sent(tensor: Tensor, device: torch.device | None) -> Tensor:
    """A tensor of the host on a device; a card takes it from pinned memory while it computes."""
    if device is None or device.type == CPU:
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@contextmanager
def drawing(seed: int, device: torch.device) -> Iterator[None]:
    """Draw random numbers by this seed, on the CPU and on the device, and leave the generators as they were."""
    cards: list[Any] = []
    if device.type in COUNTED:
        cards = [device.index if device.index is not None else getattr(torch, device.type).current_device()]
    with torch.random.fork_rng(cards, device_type=device.type if cards else "cuda"):
        torch.manual_seed(seed)
        yield
