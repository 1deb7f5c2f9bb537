"""Control decisions to hold a router against: they look at nothing, or at the answer.

Each gives the weights of n rows over e experts. `random` as a score is the exact mean over the experts instead.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


def uniform(n: int, num_experts: int) -> Float[Tensor, "n e"]:
    """Every expert, equally."""
    return torch.full((n, num_experts), 1.0 / num_experts)


def fixed(expert: int, n: int, num_experts: int) -> Float[Tensor, "n e"]:
    """The same expert for every row; -1: the base."""
    return oracle(torch.full((n,), expert), num_experts)


def oracle(labels: Int[Tensor, " n"], num_experts: int) -> Float[Tensor, "n e"]:
    """The expert trained for each row's domain; -1 (a domain nobody trained for): the base."""
    return F.one_hot(labels.clamp_min(0), num_experts) * (labels >= 0)[:, None].float()


def random(n: int, num_experts: int, generator: torch.Generator) -> Float[Tensor, "n e"]:
    """One expert a row, drawn evenly."""
    return oracle(torch.randint(num_experts, (n,), generator=generator), num_experts)
