"""The one training loop: AdamW, a schedule of its rate, clipping, accumulation, validation, early stop, best state.

Knows nothing about models or data: callers pass parameters, a batch for every step number, a loss, a validation and a
checkpoint.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from moesaic.errors import NonFiniteError, memory_for
from moesaic.files import faults
from moesaic.hardware import FUSED, drawing
from moesaic.sections.training import Train
from moesaic.train.checkpoint import Checkpoint, State
from moesaic.train.ranks import ALONE, Ranks

B = TypeVar("B")
Record = Callable[[dict[str, Any]], None]
SHOWN = 8  # rows named in an error
SCALE = 2.0**12
"""The first factor of the loss of a training in float16; it adapts within a few steps."""


@dataclass(frozen=True)
class Trained:
    """The parameters at the best validation (`state`), and how the training went."""

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
    seed: int = 0,
    checkpoint: Checkpoint | None = None,
    names: Callable[[int], list[str]] = lambda micro: [],
    ranks: Ranks = ALONE,
    after: Callable[[Ranks], Mapping[str, Any]] = lambda ranks: {},
    scaled: bool = False,
) -> Trained:
    """Train `parameters` for `settings.steps` steps and return their best state by validation (lower is better).

    `batch(i)` is micro-batch i, a pure function of i; each step uses `accumulate` of them. `loss` returns the sum over
    a batch and the number of summands, so that a step's mean weighs every token equally. The random numbers of `loss`
    depend on `seed` and the step alone, so a resumed training draws the same. `names(i)`: the rows of micro-batch i,
    for messages. `ranks`: the processes that share the micro-batches of a step and all call this; their `loss` must
    draw nothing at random. `after`: called after every step, and gives what its row shows beside the loss. `scaled`:
    multiply the loss by a scale before the backward pass, as gradients of float16 vanish; a step whose gradients
    overflow changes no parameter and halves the scale. Raises NonFiniteError for a loss, norm or validation that is not
    finite.
    """
    device = next(iter(parameters.values())).device
    adam = partial(torch.optim.AdamW, betas=(0.9, 0.95), weight_decay=settings.weight_decay, fused=device.type in FUSED)
    optimiser = adam(parameters.values(), lr)
    state = checkpoint.begin(parameters, optimiser, settings.steps, ranks) if checkpoint else State()
    if scaled and not state.scale:
        state.scale = SCALE
    every = settings.evaluate_every or settings.steps

    def over() -> bool:
        return state.step >= settings.steps or bool(settings.patience and state.misses >= settings.patience)

    def stopped(what: str) -> NonFiniteError:
        first = state.step * settings.accumulate
        rows = [name for micro in range(first, first + settings.accumulate) for name in names(micro)]
        shown = f", of rows {', '.join(rows[:SHOWN])}" + (", ..." if rows[SHOWN:] else "") if rows else ""
        saved = f"; the last saved state is in {checkpoint.at}" if checkpoint else ""
        hint = f"this step was discarded; lower lr (now {lr:g}) or clip (now {settings.clip:g}){saved}"
        return NonFiniteError(f"the {what}{shown}", hint=hint)

    while not over():
        lap = time.perf_counter()
        for group in optimiser.param_groups:
            group["lr"] = lr * factor(state.step, settings)
        scale = state.scale or 1.0
        with memory_for(f"step {state.step + 1}", knobs(settings)), drawing(seed * 1_000_003 + state.step, device):
            faults.reach("step")
            total, count = 0.0, 0.0
            micros = ranks.own(state.step * settings.accumulate, settings.accumulate)
            for micro in micros:
                with ranks.syncing(last=micro == micros[-1]):
                    summed, terms = loss(batch(micro))
                    (summed * scale if scaled else summed).backward()
                total, count = total + summed.item(), count + terms
            total, count = ranks.summed(total, count)
            grads = [p.grad for p in parameters.values() if p.grad is not None]
            torch._foreach_div_(grads, count / ranks.world * scale)  # averaged over the processes already
            norm = ranks.clip(parameters.values(), settings.clip)
        total = float(faults.reach("loss") or total)
        overflows = scaled and not math.isfinite(norm) and scale > 1
        if not math.isfinite(total) or not (math.isfinite(norm) or overflows):
            raise stopped(f"loss of step {state.step + 1} is {total / count}, the gradient's norm {norm}")
        if not overflows:
            optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        row = {"step": state.step + 1, "loss": total / count, "lr": lr * factor(state.step, settings)}
        row |= {} if overflows else {"norm": norm}
        if scaled:
            row["scale"] = scale
            state.rescale(overflows)
        row |= {"rate": count / (time.perf_counter() - lap), **after(ranks)}
        if (state.step + 1) % every == 0 or state.step + 1 == settings.steps:
            with memory_for("a validation", knobs(settings)):
                row["validation"] = value = validate()
            if not math.isfinite(value):
                raise stopped(f"validation of step {state.step + 1} is {value}")
            if value < state.best:
                state.best, state.best_step, state.misses = value, state.step + 1, 0
                state.kept = {name: p.detach().clone() for name, p in parameters.items()}
            else:
                state.misses += 1
        state.step += 1
        state.seconds += time.perf_counter() - lap
        record(row)
        if checkpoint:
            checkpoint.after(state, parameters, optimiser, over())
    return Trained(ranks.whole(state.kept), state.best, state.best_step, state.step, state.seconds)


def factor(step: int, settings: Train) -> float:
    """The learning rate at a step as a share of its peak: linear warm-up, then half a cosine or `wsd`, down to 0."""
    warm = settings.warmup * settings.steps
    if step < warm:
        return (step + 1) / (warm + 1)
    if settings.schedule == "wsd":
        return min(1.0, (settings.steps - step) / max(settings.decay * settings.steps, 1e-9))
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(settings.steps - warm, 1)))


def knobs(settings: Train) -> str:
    return (
        f"halve batch (now {settings.batch}) and double accumulate (now {settings.accumulate}), shorten length "
        f"(now {settings.length}), or train fewer in parallel (workers)"
    )
