"""What a cell is trained for: the text, and an even load of the experts of sparse layers.

Knows nothing about steps, rates or batches on disk.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moesaic.data.batches import Batch
from moesaic.lab.arms import Balance
from moesaic.model.decoder import Decoder
from moesaic.ops.losses import Targets
from moesaic.routing import Routing
from moesaic.train.balance import Balancer, Quantiles, Rule, SignBias, counts_of, loss_of_balance, with_counts
from moesaic.train.ranks import Ranks

RULES: Mapping[Balance, Rule] = {"sign": SignBias(), "quantile": Quantiles()}
"""The balance of an arm -> how the biases of its sparse layers move; other arms have no such bias."""

Counted = tuple[Batch, Float[Tensor, "l e"] | None]
"""A micro-batch, and the tokens of every expert in all micro-batches of its step where there are several."""


class Objective:
    """The loss of a decoder under a balance. It adds up what the log of a step shows."""

    def __init__(self, decoder: Decoder, balance: Balance):
        self.decoder, self.by_loss = decoder, balance == "loss"
        self.balancer = Balancer(decoder, RULES[balance]) if balance in RULES else None
        self.nats, self.scored = 0.0, 0
        self.counts: list[Float[Tensor, "l e"]] = []

    def batches(self, batch: Callable[[int], Batch], accumulate: int) -> Callable[[int], Counted]:
        """The micro-batches as `__call__` takes them."""
        if not self.by_loss:
            return lambda number: (batch(number), None)
        return with_counts(batch, self.decided, accumulate)

    def __call__(self, given: Counted) -> tuple[Tensor, int]:
        batch, counts = given
        targets = batch.scored
        output = self.decoder(batch.ids, None, None, batch.documents, targets)
        loss, terms = output.nats, len(targets.at)
        self.nats, self.scored = self.nats + loss.item(), self.scored + terms
        if any(routing is not None for routing in output.routings):
            self.counts.append(counts_of(output.routings))
        if self.balancer:
            self.balancer.see(output.routings)
        if self.by_loss:
            loss = loss + terms * loss_of_balance(self.decoder, output.routings, counts)
        return loss, terms

    def after(self, ranks: Ranks) -> Mapping[str, Any]:
        """End a step: move the biases, and give the loss of the text alone, the tokens that it is the mean over, and
        the load of every sparse layer: the tokens of each expert as a multiple of their mean.
        """
        if self.balancer:
            self.balancer.step()
        row: dict[str, Any] = {"loss": self.nats / self.scored, "scored": self.scored}
        if self.counts:
            total = torch.stack(self.counts).sum(0)
            row["load"] = (total / total.mean(1, keepdim=True)).tolist()
        self.nats, self.scored, self.counts = 0.0, 0, []
        return row

    def decided(self, batch: Batch) -> list[Routing | None]:
        """The decisions of the layers in a micro-batch."""
        return self.decoder(batch.ids, None, None, batch.documents, batch.scored).routings

    def rows(self, ids: Int[Tensor, "b t"], targets: Int[Tensor, "b t"]) -> Float[Tensor, " b"]:
        """Nats of texts that are only scored."""
        return self.decoder(ids, targets=Targets.of(targets)).rows
