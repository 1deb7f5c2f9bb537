"""Products of rows that are sorted by expert, each with the matrix of its expert, as pure functions.

Knows nothing about routers: the caller sorts the rows and says where the rows of each expert end.
"""

import torch
from jaxtyping import Float, Int32
from torch import Tensor
from torch.nn import functional as F

BYTES = 16
"""The sizes of rows that torch multiplies in groups are multiples of so many bytes."""

GROUPED = (torch.float32, torch.bfloat16, torch.float16)


def grouped(x: Float[Tensor, "m i"], weight: Float[Tensor, "e o i"], ends: Int32[Tensor, " e"]) -> Float[Tensor, "m o"]:
    """y_r = W_e x_r for the rows r of each expert e: those from `ends[e - 1]` to `ends[e]`. The last of `ends` is m.

    An expert without a row is not computed. Under autocast both are multiplied in its type, as in a linear layer.
    """
    device = x.device.type
    if torch.is_autocast_enabled(device):
        x, weight = (tensor.to(torch.get_autocast_dtype(device)) for tensor in (x, weight))
    return together(x, weight, ends) if fits(x, weight) else one_by_one(x, weight, ends)


def fits(x: Float[Tensor, "m i"], weight: Float[Tensor, "e o i"]) -> bool:
    """Whether torch multiplies rows and matrices of this type and these sizes in groups, backward too."""
    if x.dtype not in GROUPED or not len(x) or x.stride(1) != 1:
        return False
    if torch.compiler.is_compiling() and x.dtype != torch.bfloat16:
        return False  # torch 2.13 computes other types in groups, but does not compile that
    return not any(size * x.itemsize % BYTES for size in (*weight.shape[1:], x.stride(0)))


def together(
    x: Float[Tensor, "m i"], weight: Float[Tensor, "e o i"], ends: Int32[Tensor, " e"]
) -> Float[Tensor, "m o"]:
    """One call for all experts, without reading `ends` on the host."""
    y = F.grouped_mm(x, weight.transpose(1, 2), offs=ends)
    if y.requires_grad:
        y.register_hook(by_rows)
    return y


def by_rows(gradient: Float[Tensor, "m o"]) -> Float[Tensor, "m o"]:
    """The gradient with its rows one after another: torch refuses other strides, such as the 0 of a sum's gradient."""
    if gradient.stride() == (gradient.shape[1], 1):
        return gradient
    return gradient.clone(memory_format=torch.contiguous_format)


def one_by_one(
    x: Float[Tensor, "m i"], weight: Float[Tensor, "e o i"], ends: Int32[Tensor, " e"]
) -> Float[Tensor, "m o"]:
    """A product for each expert that has rows."""
    stops = ends.tolist()
    spans = zip([0, *stops[:-1]], stops, weight.unbind(), strict=True)
    found = [F.linear(x[start:stop], own) for start, stop, own in spans if stop > start]
    return torch.cat(found) if found else F.linear(x, weight[0])
