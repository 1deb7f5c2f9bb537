"""A card that no machine needs: tensors with sizes, a type and a device, and without values.

Under torch's FakeTensorMode an operation on tensors of two devices raises, and so does whatever needs a value on the
host. `Card` raises too where numbers come back to the host unplanned, or are sent in a way that waits.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from moesaic.model.deciding import Decider
from moesaic.routing.states import FORMS

DEVICE = torch.device("cuda:0" if torch.backends.cuda.is_built() else "lazy:0")
"""A build without CUDA can neither index tensors of `cuda` nor derive by them; `lazy` is a device of every build."""

COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


class Card(TorchDispatchMode):
    """A fake device in use. `reads`: the numbers that the host gets at its next waits, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[Any] = []
        self.waits = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, FakeTensor)]
        devices = {one.device.type for one in given if one.ndim}
        if function in COPIES:
            if DEVICE.type in devices and out.device.type == "cpu":
                raise AssertionError("the host waits for a copy")
            if "cpu" in devices and out.device == DEVICE and out.ndim and not kwargs.get("non_blocking"):
                raise AssertionError("a copy to the device waits")
        elif len(devices) > 1:
            raise AssertionError(f"{function} sends a tensor of its own accord")
        return out

    def read(self, tensor: torch.Tensor) -> Any:
        """The planned numbers in the place of the tensor's own."""
        if not self.reads:
            raise AssertionError(f"the host waits for {list(tensor.shape)} numbers of {tensor.dtype}")
        self.waits += 1
        return self.reads.pop(0)


@contextmanager
def card() -> Iterator[Card]:
    """A fake device, on which `there` puts values."""
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        stack.enter_context(FakeTensorMode())
        found = stack.enter_context(Card())
        patch.setattr(FakeTensor, "tolist", lambda tensor: found.read(tensor))
        patch.setitem(FORMS, FakeTensor, FORMS[torch.Tensor])
        if DEVICE.type == "lazy":
            patch.setattr(torch, "is_autocast_enabled", lambda device: False)  # which knows no such device
        yield found


def there(value: Any) -> Any:
    """The same value with fake tensors on the device: a tensor, a module, or a dataclass, tuple or mapping of them."""
    with _disable_current_modes():
        copied = deepcopy(value)
    return moved(copied, {})


def moved(value: Any, seen: dict[int, tuple[torch.Tensor, torch.Tensor]]) -> Any:
    if isinstance(value, FakeTensor):
        return value
    if isinstance(value, torch.Tensor):
        if id(value) not in seen:
            fake = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=DEVICE)
            parameter = isinstance(value, nn.Parameter)
            seen[id(value)] = value, nn.Parameter(fake, value.requires_grad) if parameter else fake
        return seen[id(value)][1]
    if isinstance(value, nn.Module):
        for part in value.modules():
            for own in (part._parameters, part._buffers):
                own.update({name: moved(one, seen) for name, one in own.items()})
            if isinstance(decider := vars(part).get("decider"), Decider):
                part.decider = moved(decider, seen)
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        own = {f.name: moved(getattr(value, f.name), seen) for f in dataclasses.fields(value) if f.init}
        return dataclasses.replace(value, **own)
    if isinstance(value, dict):
        return {key: moved(one, seen) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(moved(one, seen) for one in value)
    return value
