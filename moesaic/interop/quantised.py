"""Frozen matrices in 8 or 4 bits, packed and unpacked by torchao: a filling of the linear slot.

Each product unpacks one matrix and forgets it. 8 bits: whole numbers with a scale for each row; 4 bits: NF4 (arXiv
2305.14314). Knows nothing about adapters, which stand beside such a linear as beside any other.
"""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from moesaic.adapters.slots import slots_of
from moesaic.errors import CompatibilityError, StorageError
from moesaic.model.decoder import Decoder
from moesaic.model.encoder import Encoder
from moesaic.nn import Linear
from moesaic.routing import Gates

EXTRA = "pip install 'moesaic[quant]'"
BLOCK, BLOCKS = 64, 256
"""In 4 bits, the values that share a scale, and at most the scales that share a factor."""


@dataclass(frozen=True)
class Packing:
    """A form of packed matrices."""

    pack: Callable[[Tensor], Tensor]
    unpack: Callable[[Any], Tensor]


def packing(bits: int) -> Packing:
    """The form with so many bits, 8 or 4; StorageError without torchao."""
    try:
        with quiet():
            from torchao.quantization import Int8Tensor, PerRow
            from torchao.quantization.quantize_.workflows.nf4.nf4_tensor import to_nf4
    except ImportError as error:
        raise StorageError(
            "weights in few bits need the package torchao", hint=f"install the extra: {EXTRA}"
        ) from error
    if bits == 8:
        return Packing(lambda whole: Int8Tensor.from_hp(whole, PerRow()), lambda packed: packed.dequantize())
    return Packing(
        lambda whole: to_nf4(whole, BLOCK, shared(whole.numel())), lambda packed: packed.get_original_weight()
    )


def shared(values: int) -> int:
    """The scales that share a factor in a matrix of so many values."""
    return math.gcd(values // BLOCK, BLOCKS)


def packed_bytes(shape: tuple[int, ...], bits: int, width: int) -> int:
    """Bytes of a packed matrix; factors of scales are as wide as the matrix was."""
    outer, inner = shape
    if bits == 8:
        return outer * inner + outer * 5  # a scale and the point of zero of each row
    scales = outer * inner // BLOCK
    return outer * inner // 2 + scales + (scales // shared(outer * inner) + 17) * width


def unpacking_bytes(values: int, bits: int, width: int) -> int:
    """The most bytes that exist while a matrix of so many values is unpacked, itself included."""
    return values * (4 + width if bits == 8 else 8 + 3 * width)


class PackedLinear(Linear):
    """The plain filling with a packed matrix, which no gradient changes. `weight`: the matrix, unpacked for readers."""

    def __init__(self, whole: Linear, form: Packing):
        nn.Module.__init__(self)
        self.form = form
        self.packed = nn.Parameter(form.pack(whole.weight.detach()), requires_grad=False)
        self.bias = whole.bias

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self.form.unpack(self.packed)

    @property
    def in_features(self) -> int:
        return self.packed.shape[1]

    @property
    def out_features(self) -> int:
        return self.packed.shape[0]

    def forward(self, x: Float[Tensor, "n t i"], gates: Gates | None) -> Float[Tensor, "n t o"]:
        y = UnpackedProduct.apply(x, self)
        return y if self.bias is None else y + self.bias


class UnpackedProduct(torch.autograd.Function):
    """x W^T of a packed W, which is unpacked once more for the backward pass instead of being kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: PackedLinear) -> Tensor:
        ctx.linear = linear
        return F.linear(x, linear.weight.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        return slope @ ctx.linear.weight.to(slope.dtype), None


def pack_layers(body: Decoder | Encoder, bits: int) -> None:
    """Pack every matrix of the layers, one by one; embeddings, head, norms and sparse experts stay as they are."""
    form = packing(bits)
    for path, linear in slots_of(body.layers, Linear).items():
        if bits == 4 and linear.weight.numel() % BLOCK:
            what, expected = "the matrix cannot be packed in 4 bits", f"a multiple of {BLOCK} values"
            raise CompatibilityError(what, field=f"layers.{path}", expected=expected, got=linear.weight.numel())
        parent, _, name = path.rpartition(".")
        setattr(body.layers.get_submodule(parent), name, PackedLinear(linear, form))


@contextmanager
def quiet() -> Iterator[None]:
    """Hide what torchao logs while it is imported: kernels of its own that this machine lacks."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
