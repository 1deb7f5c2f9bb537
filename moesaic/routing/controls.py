"""Control decisions to compare a router with: they read nothing, or the right answer.

Each returns the weights of n rows over e experts. Knows nothing about routers.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def uniform(n: int, num_experts: int, device: torch.device | None = None) -> Float[Tensor, "n e"]:
    return torch.full((n, num_experts), 1.0 / num_experts, device=device)


def fixed(expert: int, n: int, num_experts: int, device: torch.device | None = None) -> Float[Tensor, "n e"]:
    """Choose the same expert for every row; -1: the base."""
    return oracle(torch.full((n,), expert, device=device), num_experts)


def oracle(labels: Int[Tensor, " n"], num_experts: int) -> Float[Tensor, "n e"]:
    """Choose the expert that was trained for each row's domain; -1 (no expert was): the base."""
    return (labels[:, None] == torch.arange(num_experts, device=labels.device)).float()
