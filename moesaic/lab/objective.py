"""What a cell is trained for: the text, and an even load of the experts of sparse layers.

Knows nothing about steps, rates or batches on disk.
"""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from moesaic.data.batches import Batch
from moesaic.model.decoder import Decoder
from moesaic.ops.losses import UNSCORED, token_nll
from moesaic.routing import Routing
from moesaic.train.ranks import Ranks


class Objective:
    """The loss of a decoder. It counts scored tokens, and those of every expert, until the optimiser's step is over."""

    def __init__(self, decoder: Decoder):
        self.decoder, self.scored = decoder, 0
        self.counts: dict[int, Int[Tensor, " e"]] = {}

    def __call__(self, batch: Batch) -> tuple[Tensor, int]:
        output = self.decoder(batch.ids, None, None, batch.documents)
        for layer, routing in sparse(output.routings):
            counts = (routing.weights > 0).sum(0)
            self.counts[layer] = self.counts[layer] + counts if layer in self.counts else counts
        terms = int((batch.targets != UNSCORED).sum())
        self.scored += terms
        return token_nll(output.logits, batch.targets).sum(), terms

    def after(self, ranks: Ranks) -> Mapping[str, Any]:
        """The scored tokens of a step, and the tokens of each expert of a sparse layer as a multiple of their mean."""
        loads = [(counts / counts.float().mean()).tolist() for counts in self.counts.values()]
        scored, self.scored, self.counts = self.scored, 0, {}
        return {"scored": scored, **({"load": loads} if loads else {})}

    def logits(self, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t v"]:
        """Next-token logits of texts that are only scored."""
        return self.decoder(ids).logits


def sparse(routings: list[Routing | None]) -> list[tuple[int, Routing]]:
    """The sparse layers, by number, with their decisions."""
    return [(layer, routing) for layer, routing in enumerate(routings) if routing is not None]
