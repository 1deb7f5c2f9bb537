"""Training of the gates of layers: next-token loss and balance; base and experts are frozen.

Knows nothing about recipes or files.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from moesaic.adapters.slots import slots_of
from moesaic.data.batches import Batch, Schedule, Tokens, pad
from moesaic.kinds.gates import plain
from moesaic.model.decoder import Decoder
from moesaic.nn import SparseFFN
from moesaic.train.balance import Balancer, Quantiles, Rule, SignBias, loss_of_balance, with_counts
from moesaic.train.language import mean_nats
from moesaic.train.ranks import Ranks

RULES: dict[str, Callable[[float], Rule]] = {"sign": SignBias, "quantiles": Quantiles}
"""Way to balance by a bias of the choice -> the rule of a strength."""


class Read(NamedTuple):
    """A batch, and which of its tokens are no padding."""

    batch: Batch
    real: Bool[Tensor, " n"]


class GateTraining:
    """The training of a decoder's gates on rows, as `train.loop.fit` takes it.

    `balance`: none, loss, sign or quantiles; the last two need slots with a bias of the choice.
    """

    def __init__(
        self,
        decoder: Decoder,
        rows: Sequence[Tokens],
        held_out: Sequence[Tokens],
        batch: int,
        balance: str,
        strength: float,
        seed: int = 0,
        accumulate: int = 1,
    ):
        self.decoder, self.held_out, self.batch_size = decoder.requires_grad_(False), held_out, batch
        self.balance, self.strength, self.accumulate = balance, strength, accumulate
        self.schedule = Schedule(rows, batch, seed)
        self.balancer = Balancer(decoder, RULES[balance](strength)) if balance in RULES else None
        self.parameters: dict[str, nn.Parameter] = {}
        for path, slot in slots_of(decoder, SparseFFN).items():
            slot.gate.requires_grad_(True)
            self.parameters[f"{path}.gate.weight"] = slot.gate.weight
            if slot.balance_bias is not None:  # a part of the state between two steps
                self.parameters[f"{path}.balance_bias"] = slot.balance_bias

    @property
    def batch(self) -> Callable[[int], Any]:
        """Micro-batches, with the counts of their step where a loss balances over several of them."""
        if self.balance != "loss":
            return lambda step: (self.read(step), None)
        return with_counts(self.read, lambda read: self.decoder(read.batch.ids).routings, self.accumulate)

    def read(self, step: int) -> Read:
        rows = self.schedule(step)
        device, batch = self.decoder.norm.weight.device, pad(rows)
        lengths = torch.tensor([len(row.ids) - 1 for row in rows])
        real = (torch.arange(batch.ids.shape[1]) < lengths[:, None]).flatten()
        return Read(batch.on(device), real.to(device))

    def loss(self, given: tuple[Read, Float[Tensor, "l e"] | None]) -> tuple[Tensor, int]:
        (batch, real), counts = given
        targets = batch.scored
        out = self.decoder(batch.ids, targets=targets)
        total, scored = out.nats, len(targets.at)
        if self.balance == "loss":
            total = total + scored * loss_of_balance(self.decoder, out.routings, counts, real, self.strength, 0.0)
        if self.balancer:
            self.balancer.see(out.routings, real)
        return total, scored

    def validate(self) -> float:
        with unbiased(self.decoder):
            return mean_nats(self.decoder, plain, self.held_out, self.batch_size)

    def after(self, ranks: Ranks) -> Mapping[str, Any]:
        if self.balancer:
            self.balancer.step()
        return {}


@contextmanager
def unbiased(decoder: Decoder) -> Iterator[None]:
    """Take the biases of the choice out, as no evaluation has them."""
    kept = {slot: slot.balance_bias for slot in slots_of(decoder, SparseFFN).values()}
    for slot in kept:
        slot.balance_bias = None
    try:
        yield
    finally:
        for slot, bias in kept.items():
            slot.balance_bias = bias


def gates_in(state: Mapping[str, Tensor]) -> dict[str, Float[Tensor, "e d"]]:
    """The rows of all gates in a state of `GateTraining.parameters`, by the paths of their slots."""
    end = ".sparse.gate.weight"
    return {name.removesuffix(end): rows for name, rows in state.items() if name.endswith(end)}
