"""Gates of an adopted mixture whose layers route every token: in closed form from prompts, without a training.

Knows nothing about folders.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from moesaic.adapters.feedforward import ffns
from moesaic.artefacts.base import Base
from moesaic.compose.token_gates import GATES, Reader, Texts, routed
from moesaic.data.batches import Tokens
from moesaic.evaluate.score import score
from moesaic.model.mixture import Routed
from moesaic.routing.routers import GatesRouter

START = "ridge"
CHOSEN = 2
"""Experts that a token passes."""
END = -1
"""Ends the ids of a prompt where those of several are one tensor."""
FOLD = 5
"""One prompt in so many is held out, to test the gates."""
BATCH = 16

Prompts = Mapping[str, Tensor]
"""The ids of the prompts of each expert, each prompt ended by `END`."""


def joined(prompts: Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor([id for ids in prompts for id in (*ids, END)])


def parted(ids: Tensor) -> list[list[int]]:
    """The prompts that `joined` made one tensor of."""
    ends = [-1, *(ids == END).nonzero().flatten().tolist()]
    return [ids[start + 1 : end].tolist() for start, end in pairwise(ends)]


def gates_from(base: Base, prompts: Prompts) -> tuple[GatesRouter, dict[str, Any]]:
    """The gates of experts with these prompts, and how many prompts left out of gates by the others were right."""
    every = {name: parted(ids) for name, ids in prompts.items()}
    taught = {name: [one for index, one in enumerate(some) if index % FOLD] for name, some in every.items()}
    held_out = {name: some[::FOLD] for name, some in every.items()}
    tested, right = fitted(base, taught), dict[str, int]()
    for index, (name, some) in enumerate(held_out.items()):
        right[name] = sum(chosen(base, tested, ids) == index for ids in some)
    of = {name: len(some) for name, some in held_out.items()}
    accuracy = sum(right[name] / of[name] for name in of) / len(of)
    return fitted(base, every), {"accuracy": accuracy, "right": right, "of": of}


def fitted(base: Base, prompts: Mapping[str, Sequence[Sequence[int]]]) -> GatesRouter:
    reader = Reader(base.decoder, base.tokenizer, torch.Generator())
    rows = GATES[START].rows(reader, [Texts(some) for some in prompts.values()])
    return GatesRouter.of(dict(zip(ffns(base.decoder), rows, strict=True)), min(CHOSEN, len(prompts))).eval()


@torch.no_grad()
def chosen(base: Base, gates: GatesRouter, ids: Sequence[int]) -> int:
    """The expert that the gates give a prompt's tokens to, as the base reads them, by the sum of probabilities."""
    states = Reader(base.decoder, base.tokenizer, torch.Generator()).states(ids, routed)
    shares = [(own @ rows.t()).softmax(-1).sum(0) for own, rows in zip(states, gates.rows, strict=True)]
    return int(torch.stack(shares).sum(0).argmax())


def nats_on(model: Routed, prompts: Prompts) -> dict[str, float]:
    """Nats a token of the prompts of each expert, from their second token on, under a mixture."""
    rows = {
        name: [Tokens(ids, 1, str(index)) for index, ids in enumerate(parted(own)) if len(ids) > 1]
        for name, own in prompts.items()
    }
    rows = {name: some for name, some in rows.items() if some}
    found = score(model.score, rows, None, BATCH)
    return {name: found.mean(name) for name in rows}
