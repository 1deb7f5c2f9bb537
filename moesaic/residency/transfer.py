"""Tensors on their way from a disk to a device, by way of host memory that the device reads by itself.

Knows nothing about what they are, nor when they are needed.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]
ALIGNED = 256
"""Bytes at whose multiples a device likes tensors to begin."""


@dataclass(frozen=True)
class Packed:
    """Tensors in one piece of host memory, of which a copy is made in one go: where each begins, its type and shape."""

    memory: Tensor
    layout: Mapping[str, tuple[int, torch.dtype, torch.Size]]

    @staticmethod
    def of(tensors: Tensors, pinned: bool) -> "Packed":
        """A copy of tensors of the host."""
        layout, end = {}, 0
        for name, tensor in tensors.items():
            layout[name] = end, tensor.dtype, tensor.shape
            end += -(-tensor.nbytes // ALIGNED) * ALIGNED
        packed = Packed(torch.empty(end, dtype=torch.uint8, pin_memory=pinned), layout)
        for name, view in packed.views(packed.memory):
            view.copy_(tensors[name])
        return packed

    def views(self, memory: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The tensors in such a piece of memory, wherever it is."""
        for name, (begin, dtype, shape) in self.layout.items():
            yield name, memory[begin : begin + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)


class Carrier:
    """Brings experts to a device; `room`: bytes of host memory in which those brought last wait to be brought again."""

    def __init__(self, device: torch.device, room: int):
        self.device, self.room, self.near = device, room, dict[int, Packed]()
        self.cuda = device.type == "cuda"
        self.side = torch.cuda.Stream(device) if self.cuda else None

    def carried(self, expert: int, read: Callable[[], Tensors], let_go: Callable[[], None]) -> Tensors:
        """An expert's tensors on the device. `let_go` of the files that `read` reads, once they are copied."""
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
        """On a stream of its own, so that whatever the device computes meanwhile goes on."""
        if self.side is None:
            return dict(packed.views(packed.memory.to(self.device, copy=True)))
        with torch.cuda.stream(self.side):
            memory = packed.memory.to(self.device, non_blocking=True)
        self.side.synchronize()
        return dict(packed.views(memory))

    def takes(self, size: int) -> bool:
        """Whether there is room for so many bytes, once those brought longest ago have made some."""
        if self.taken(size) > self.room:
            return False
        while self.taken(size) + sum(self.taken(packed.memory.nbytes) for packed in self.near.values()) > self.room:
            del self.near[next(iter(self.near))]
        return True

    def taken(self, size: int) -> int:
        """What a piece of memory costs: torch rounds pinned ones up to a power of 2."""
        return 1 << (size - 1).bit_length() if self.cuda and size else size

    def settle(self) -> None:
        """Wait until the device has done all that it was asked: what it computes with may then go."""
        if self.cuda:
            torch.cuda.synchronize(self.device)
