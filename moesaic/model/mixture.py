"""The mixture: base + experts + router as one model that routes once, from the prompt, and then only computes.

Knows nothing about text, files or how experts were trained. Between calls all state is in the Session, a value that
the caller holds: rows join, leave and multiply by `select`, `repeat` and `join`.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from moesaic.config import Feature
from moesaic.model.decoder import Decoder
from moesaic.model.features import Prompts, pool, project, read
from moesaic.model.readings import Readings
from moesaic.model.source import HELD, ExpertSource
from moesaic.nn import Cache
from moesaic.routing import Gates, Routing, Selection, require
from moesaic.routing.routers import ArrowRouter, Features, Router

Read = TypeVar("Read", Cache, Readings)


@dataclass(frozen=True)
class Session(Generic[Read]):
    """Rows in flight: what they chose, grouped for the layers, and what they have read so far."""

    routing: Routing
    gates: Gates
    cache: Read

    def select(self, rows: Int[Tensor, " g"]) -> "Session[Read]":
        return Session(self.routing[rows], self.gates.select(rows), self.cache.select(rows))

    def repeat(self, n: int) -> "Session[Read]":
        return self.select(torch.arange(self.gates.num_rows, device=self.gates.rows.device).repeat_interleave(n))

    @staticmethod
    def join(parts: list["Session[Read]"]) -> "Session[Read]":
        gates = Gates.of(torch.cat([part.gates.weights for part in parts]))
        read = [part.cache for part in parts]
        return Session(Routing.cat([part.routing for part in parts]), gates, type(read[0]).join(read))


@runtime_checkable
class Routed(Protocol):
    """What generation and evaluation ask of a mixture, whatever its experts are."""

    names: tuple[str, ...]

    @property
    def context(self) -> int: ...
    def route(self, prompts: Prompts) -> Routing: ...
    def score(self, ids: Int[Tensor, "b t"], gates: Gates | None) -> Float[Tensor, "b t v"]: ...
    def prefill(
        self, prompts: Prompts, room: int, forced: Routing | None
    ) -> tuple[Float[Tensor, "b v"], Session[Any]]: ...
    def decode(self, ids: Int[Tensor, " b"], session: Session[Any]) -> Float[Tensor, "b v"]: ...


def decided(router: Router, features: Features, selection: Selection, disabled: list[int], like: Tensor) -> Routing:
    """Features to weights, on the device of `like`; with all experts disabled, every row abstains."""
    logits = router(features).to(like.device)
    silent = torch.tensor(disabled, dtype=torch.long, device=logits.device)
    return selection(logits.index_fill(1, silent, float("-inf")))


class AdapterMixture(nn.Module):
    """Experts in the slots of one shared base, chosen per sequence: sites `linear` and `ffn`, level `sequence`.

    `trunk`: that many lowest blocks carry no expert, so a router that reads their output (`hidden@k`) shares the
    prompt's own pass. `disabled`: experts that the router never chooses; who names one is still answered by it.
    `source` has those that compute in memory while they do.
    """

    def __init__(
        self,
        decoder: Decoder,
        names: tuple[str, ...],
        router: Router,
        feature: Feature,
        selection: Selection,
        trunk: int,
        disabled: Collection[str] = (),
        source: ExpertSource = HELD,
    ):
        super().__init__()
        self.decoder, self.names, self.router = decoder, names, router
        self.feature, self.selection, self.trunk, self.source = feature, selection, trunk, source
        self.prototypes = router.prototypes if isinstance(router, ArrowRouter) else {}
        self.disabled = [place for place, name in enumerate(names) if name in disabled]

    @property
    def context(self) -> int:
        """How many tokens a prompt and what follows it may have together."""
        return self.decoder.config.context

    def route(self, prompts: Prompts) -> Routing:
        """Decide for each prompt, by itself, from a pass of the base."""
        if self.feature.source == "projection":
            return self.decide(project(self.decoder, len(self.names), prompts, self.prototypes))
        return self.decide(read(self.feature, self.decoder, len(self.names), prompts))

    def decide(self, features: Features) -> Routing:
        """Features to weights."""
        return decided(self.router, features, self.selection, self.disabled, self.decoder.norm.weight)

    def score(self, ids: Int[Tensor, "b t"], gates: Gates | None) -> Float[Tensor, "b t v"]:
        """Next-token logits of whole sequences under given gates."""
        gates = require(gates, ids)
        with self.source.using(gates.present):
            return self.decoder(ids, None, gates).logits

    def prefill(
        self, prompts: Prompts, room: int, forced: Routing | None = None
    ) -> tuple[Float[Tensor, "b v"], Session[Cache]]:
        """Read the prompts, decide (unless `forced`), and return the logits after each prompt's last token.

        `room`: how many tokens may follow.
        """
        decoder, layers = self.decoder, len(self.decoder.layers)
        x = decoder.embed_tokens(prompts.ids)
        cache = Cache.empty(decoder.config, len(x), x.shape[1] + room, like=x)
        depth = self.feature.depth if forced is None and self.feature.source == "state" else None
        if depth is not None and depth <= self.trunk:
            x, _ = decoder.run(x, cache, range(depth), None)
            routing = self.decide(pool(x, prompts.lengths, self.feature))
        else:
            depth, routing = 0, self.route(prompts) if forced is None else forced
        gates = Gates.of(routing.weights.to(x.dtype))
        with self.source.using(gates.present):
            x, _ = decoder.run(x, cache, range(depth, layers), gates)
            cache.advance(prompts.lengths)
            last = x[torch.arange(len(x), device=x.device), prompts.lengths - 1][:, None]
            return decoder.head(last, gates)[:, 0], Session(routing, gates, cache)

    def decode(self, ids: Int[Tensor, " b"], session: Session[Cache]) -> Float[Tensor, "b v"]:
        """Read one more token of each row and return the logits after it; never re-routes."""
        with self.source.using(session.gates.present):
            logits = self.decoder(ids[:, None], session.cache, session.gates).logits[:, 0]
        session.cache.advance(1)
        return logits
