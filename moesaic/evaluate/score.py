"""Nats of every row under one contender, from its logits and the weights of the experts for each row.

Knows nothing about other contenders, nor what its numbers are compared with.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from moesaic.data.batches import Tokens, by_length, pad
from moesaic.evaluate.statistics import Scores
from moesaic.ops.losses import UNSCORED, token_nll
from moesaic.routing import Gates, controls

Logits = Callable[[Int[Tensor, "b t"], Gates | None, Bool[Tensor, "b t"] | None], Float[Tensor, "*p v"]]
"""Whole sequences, the gates of their rows, and positions -> next-token logits, as `score` of a model gives them."""


@torch.inference_mode()
def score(
    logits: Logits,
    rows: dict[str, list[Tokens]],
    weights: Float[Tensor, "n e"] | None,
    batch: int,
    device: torch.device | None = None,
) -> Scores:
    """Score what follows the prompt in the rows of all domains, in their order.

    `weights`: of the experts; None without experts, or where the router decides anew before every token. `device`: that
    of the model, None for the host.
    """
    every = [row for some in rows.values() for row in some]
    nats, tokens = np.zeros(len(every)), np.zeros(len(every))
    for chosen, scored, found, targets in passes(logits, every, weights, batch, device):
        scored = scored.cpu()
        loss = torch.zeros(scored.shape, dtype=torch.double)
        loss[scored] = token_nll(found[None], targets[None])[0].cpu().double()
        nats[chosen] = loss.sum(1).numpy()
        tokens[chosen] = scored.sum(1).numpy()
    domains = [domain for domain, some in rows.items() for _ in some]
    return Scores(nats, tokens, domains, [row.group for row in every])


@torch.inference_mode()
def score_best_of_tokens(logits: Logits, rows: dict[str, list[Tokens]], num_experts: int, batch: int) -> Scores:
    """Score every token by the base or the expert that predicts it best: no choice before every token is better."""
    every = [row for some in rows.values() for row in some]
    nats, tokens = np.zeros(len(every)), np.zeros(len(every))
    alone = [controls.fixed(expert, len(every), num_experts) for expert in range(-1, num_experts)]
    for parts in zip(*(passes(logits, every, weights, batch) for weights in alone), strict=True):
        chosen, scored, _, targets = parts[0]
        best = torch.stack([token_nll(part.logits[None], targets[None])[0] for part in parts]).amin(0)
        loss = torch.zeros(scored.shape, dtype=torch.double)
        loss[scored] = best.double()
        nats[chosen], tokens[chosen] = loss.sum(1).numpy(), scored.sum(1).numpy()
    return Scores(nats, tokens, [name for name, some in rows.items() for _ in some], [row.group for row in every])


class Pass(NamedTuple):
    """One batch: the indices of its rows, the mask of their scored positions, and there the logits and the targets."""

    chosen: list[int]
    scored: Bool[Tensor, "b t"]
    logits: Float[Tensor, "p v"]
    targets: Int[Tensor, " p"]


def passes(
    logits: Logits,
    rows: list[Tokens],
    weights: Float[Tensor, "n e"] | None,
    batch: int,
    device: torch.device | None = None,
) -> Iterator[Pass]:
    """The logits of the scored tokens of rows, batch by batch.

    Rows of similar length share a batch, which saves time and changes no score. No other logits are computed.
    """
    for chosen in by_length([len(row.ids) for row in rows], batch):
        padded = pad([rows[i] for i in chosen]).on(device)
        gates = None if weights is None else Gates.of(weights[chosen].to(padded.ids.device))
        scored = padded.targets != UNSCORED
        yield Pass(chosen, scored, logits(padded.ids, gates, scored), padded.targets[scored])
