"""Numbers between the host and a device: the one place where the host waits for a device, and how it sends without.

Knows nothing about models.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def to_host(tensor: Tensor) -> Any:
    """The numbers of a tensor as Python lists, of a scalar as a number; waits until the device has computed them."""
    return tensor.detach().tolist()


def to_device(numbers: Sequence[Any], device: torch.device, dtype: torch.dtype = torch.long) -> Tensor:
    """A tensor of these numbers on a device; returns before the device has them."""
    return torch.tensor(numbers, dtype=dtype, device="cpu").to(device, non_blocking=True)
