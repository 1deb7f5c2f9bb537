"""The one training loop: AdamW, warm-up and cosine, clipping, accumulation, validation, early stop, the best kept.

Knows nothing about models or data: it is handed parameters, a batch for every step number, a loss and a validation.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from moesaic.errors import NonFiniteError
from moesaic.recipe import Train

B = TypeVar("B")
Record = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Trained:
    """The parameters as they were when validation was best."""

    state: dict[str, Tensor]
    best: float
    best_step: int
    steps: int
    seconds: float


def fit(
    parameters: Mapping[str, nn.Parameter],
    batch: Callable[[int], B],
    loss: Callable[[B], tuple[Tensor, int]],
    validate: Callable[[], float],
    settings: Train,
    lr: float,
    record: Record,
) -> Trained:
    """Train `parameters` for `settings.steps` steps and return their best state by validation (lower is better).

    `batch(i)` is micro-batch i, a pure function of i; step s uses `accumulate` of them. `loss` gives the sum over a
    batch and how many things were summed, so that a step's mean weighs every token alike whatever batch it was in.
    """
    optimiser = torch.optim.AdamW(
        parameters.values(), lr=lr, betas=(0.9, 0.95), weight_decay=settings.weight_decay, fused=True
    )
    started, best, best_step, state, misses = time.perf_counter(), math.inf, 0, {}, 0
    every = settings.evaluate_every or settings.steps
    for step in range(settings.steps):
        lap = time.perf_counter()
        for group in optimiser.param_groups:
            group["lr"] = lr * factor(step, settings)
        total, count = 0.0, 0
        for micro in range(settings.accumulate):
            summed, terms = loss(batch(step * settings.accumulate + micro))
            summed.backward()
            total, count = total + summed.item(), count + terms
        grads = [p.grad for p in parameters.values() if p.grad is not None]
        torch._foreach_div_(grads, float(count))
        norm = nn.utils.clip_grad_norm_(parameters.values(), settings.clip).item()
        if not math.isfinite(total) or not math.isfinite(norm):
            raise NonFiniteError(
                f"the loss of step {step + 1} is {total / count}, the gradient's norm {norm}",
                hint=f"nothing of this step is kept; lower lr (now {lr:g}) or clip (now {settings.clip:g})",
            )
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        rate = count / (time.perf_counter() - lap)
        row = {"step": step + 1, "loss": total / count, "lr": lr * factor(step, settings), "norm": norm, "rate": rate}
        if (step + 1) % every == 0 or step + 1 == settings.steps:
            row["validation"] = value = validate()
            if not math.isfinite(value):
                raise NonFiniteError(f"the validation of step {step + 1} is {value}", hint=f"lower lr (now {lr:g})")
            if value < best:
                best, best_step, misses = value, step + 1, 0
                state = {name: p.detach().clone() for name, p in parameters.items()}
            else:
                misses += 1
        record(row)
        if settings.patience and misses >= settings.patience:
            break
    return Trained(state, best, best_step, step + 1, time.perf_counter() - started)


def factor(step: int, settings: Train) -> float:
    """The learning rate's share of its peak at a step: linear up over the warm-up, then half a cosine down to 0."""
    warm = settings.warmup * settings.steps
    if step < warm:
        return (step + 1) / (warm + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(settings.steps - warm, 1)))
