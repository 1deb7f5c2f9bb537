"""Transfers tensors from disk to a device through host memory that the device can read directly.

Knows nothing about what the tensors mean, nor when they are needed.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]
ALIGNED = 256  # tensors begin at multiples of so many bytes, as devices prefer


@dataclass(frozen=True)
class Packed:
    """Tensors in one piece of host memory, to be copied at once. `layout`: each one's first byte, type and shape."""

    memory: Tensor
    layout: Mapping[str, tuple[int, torch.dtype, torch.Size]]

    @staticmethod
    def of(tensors: Tensors, pinned: bool) -> "Packed":
        layout, end = {}, 0
        for name, tensor in tensors.items():
            layout[name] = end, tensor.dtype, tensor.shape
            end += -(-tensor.nbytes // ALIGNED) * ALIGNED
        packed = Packed(torch.empty(end, dtype=torch.uint8, pin_memory=pinned), layout)
        for name, view in packed.views(packed.memory):
            view.copy_(tensors[name])
        return packed

    def views(self, memory: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The tensors as views of such a piece of memory on any device."""
        for name, (begin, dtype, shape) in self.layout.items():
            yield name, memory[begin : begin + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)


class Carrier:
    """Carries experts to a device; `room`: bytes of host memory that caches the latest for the next time."""

    def __init__(self, device: torch.device, room: int):
        self.device, self.room, self.near = device, room, dict[int, Packed]()
        self.cuda = device.type == "cuda"
        self.side = torch.cuda.Stream(device) if self.cuda else None

    def carried(self, expert: int, read: Callable[[], Tensors], let_go: Callable[[], None]) -> Tensors:
        """Copy an expert's tensors to the device; `let_go` is called once the result of `read` is copied."""
        if (packed := self.near.pop(expert, None)) is None:
            tensors = read()
            if self.takes(sum(-(-tensor.nbytes // ALIGNED) * ALIGNED for tensor in tensors.values())):
                packed = Packed.of(tensors, self.cuda)
            else:
                there = {name: tensor.to(self.device, copy=True) for name, tensor in tensors.items()}
            tensors = {}
            let_go()
        if packed is None:
            return there
        self.near[expert] = packed
        return self.copied(packed)

    def copied(self, packed: Packed) -> Tensors:
        """Copy tensors to the device, on a separate stream so that the device goes on computing."""
        if self.side is None:
            return dict(packed.views(packed.memory.to(self.device, copy=True)))
        with torch.cuda.stream(self.side):
            memory = packed.memory.to(self.device, non_blocking=True)
        self.side.synchronize()
        return dict(packed.views(memory))

    def takes(self, size: int) -> bool:
        """Make room for so many bytes by dropping the oldest experts; False where they cannot fit."""
        if self.taken(size) > self.room:
            return False
        while self.taken(size) + sum(self.taken(packed.memory.nbytes) for packed in self.near.values()) > self.room:
            del self.near[next(iter(self.near))]
        return True

    def taken(self, size: int) -> int:
        """Bytes that such a piece of memory takes: torch rounds pinned memory up to a power of 2."""
        return 1 << (size - 1).bit_length() if self.cuda and size else size

    def settle(self) -> None:
        """Wait until the device has finished, so that experts can be unloaded."""
        if self.cuda:
            torch.cuda.synchronize(self.device)
