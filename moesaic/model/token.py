"""Experts beside one base that every token chooses anew in every layer: level `token` inside a decoder.

Knows nothing about text, files or how experts and gates were made.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from moesaic.adapters.token_ffn import columns
from moesaic.hardware import exact
from moesaic.model.deciding import Decider
from moesaic.model.decoder import Decoder
from moesaic.model.features import Prompts, last, pooled
from moesaic.model.mixture import Session, SharedDecoder
from moesaic.nn import Cache, Pool, Slots
from moesaic.ops.host import to_host
from moesaic.routing import Gates, Routing


class TokenMixture(SharedDecoder):
    """A decoder whose slots route their own tokens.

    A row that names an expert is answered by it alone, in every layer. The decision about a prompt is the share of
    each expert in its tokens, over all layers; no layer reads it.
    """

    steady, level = False, "token"

    def __init__(self, decoder: Decoder, decider: Decider):
        super().__init__(decoder, decider)
        self.groups = frozenset({columns(len(self.names))})

    def route(self, prompts: Prompts) -> Routing:
        decoder = self.decoder
        _, routings = decoder.run(decoder.embed_tokens(prompts.ids), None, range(len(decoder.layers)), None)
        return self.decided(routings, prompts)

    def route_and_begin(self, prompts: Prompts) -> tuple[Routing, None]:
        """The decision about prompts; no answer can go on from it, as each token is routed anew."""
        return self.route(prompts), None

    def decided(self, routings: list[Routing | None], prompts: Prompts) -> Routing:
        """The decision about prompts from those of the layers about their tokens."""
        weights = torch.stack([one.weights for one in routings if one is not None]).mean(0)
        shares = pooled(weights.unflatten(0, prompts.ids.shape), prompts.lengths, "mean")
        return self.decider.weigh(shares, prompts.ids.device, prompts.texts)

    def score(
        self, ids: Int[Tensor, "b t"], gates: Gates | None = None, at: Bool[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "*p v"]:
        """Next-token logits (b, t, v) of whole sequences; `at`: (k, v), after the tokens at these positions alone.

        Without gates the layers route every token; gates give rows to whole experts.
        """
        return self.decoder.score(ids, None if gates is None else self.given(gates.weights), at)

    def given(self, weights: Float[Tensor, "n e"]) -> Gates:
        """The gates of rows that are given to whole experts."""
        return Gates.of(torch.cat([weights, torch.zeros_like(weights[:, :1])], -1)).ready(self.groups)

    def free(self, rows: int) -> Gates:
        """The gates of rows whose tokens the layers route."""
        return Gates.one(len(self.names), rows, len(self.names) + 1, self.decoder.norm.weight).ready(self.groups)

    def prefill(
        self, prompts: Prompts, room: Slots, slots: Sequence[int], forced: Routing | None = None
    ) -> tuple[Float[Tensor, "b v"], Session[Cache]]:
        """Read prompts into these slots: the logits after each prompt's last token. `forced`: rows of whole experts."""
        decoder, cache, counts = self.decoder, Cache.of(room, slots), to_host(prompts.lengths)
        x = decoder.embed_tokens(prompts.ids)
        gates = self.free(len(x)) if forced is None else self.given(forced.weights.to(exact(x.dtype)))
        x, routings = decoder.run(x, cache, range(len(decoder.layers)), gates)
        logits = decoder.head(last(x, counts)[:, None], gates)[:, 0]
        routing = self.decided(routings, prompts) if forced is None else forced
        return logits, Session(routing, gates, cache.advance_each(counts))

    def begin(self, room: Pool, slot: int, known: Int[Tensor, "1 t"], routing: Routing, forced: bool) -> Session[Cache]:
        """A row whose first tokens are in the slot already; `read` reads the others."""
        weights = routing.weights.to(exact(self.decoder.norm.weight.dtype))
        gates = self.given(weights) if forced else self.free(1)
        return Session(routing, gates, Cache.of(room.shelf(0), (slot,), [known.shape[1]]))
