"""The mixture: base + experts + router as one model that routes once, from the prompt, and then only computes.

Knows nothing about text, files or how experts were trained. Between calls all state is in the Session, a value that
the caller holds, and in the room whose slots its rows have: rows join, leave and multiply by `join`, `select` and
`repeat`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from moesaic.adapters.feedforward import groups
from moesaic.model.deciding import Decider
from moesaic.model.decoder import Decoder
from moesaic.model.features import Prompts, pool
from moesaic.model.readings import Readings
from moesaic.model.source import HELD, ExpertSource
from moesaic.nn import Cache, Slots, Spare
from moesaic.routing import Gates, Routing, require

Read = TypeVar("Read", Cache, Readings)


@dataclass(frozen=True)
class Session(Generic[Read]):
    """Rows in flight: their decisions, the same grouped for the layers, and what they have read so far.

    A value: a step returns the next one. Its memory belongs to a room, and is written to where the rows stand.
    """

    routing: Routing
    gates: Gates
    cache: Read

    @property
    def slots(self) -> tuple[int, ...]:
        """The slot of each row."""
        return self.cache.slots

    def select(self, rows: Sequence[int]) -> "Session[Read]":
        """Some of the rows, in the order given; nothing of what they have read is copied."""
        kept = torch.tensor(rows, dtype=torch.long, device=self.gates.rows.device)
        return Session(self.routing[kept], self.gates.select(kept), self.cache.select(rows))

    def repeat(self, slots: Sequence[Sequence[int]]) -> "Session[Read]":
        """Each row once in each of its slots, the first of which is the one that it has."""
        counts = torch.tensor([len(some) for some in slots], device=self.gates.rows.device)
        kept = torch.arange(len(slots), device=counts.device).repeat_interleave(counts)
        return Session(self.routing[kept], self.gates.select(kept), self.cache.repeat(slots))

    @staticmethod
    def join(parts: Sequence["Session[Read]"]) -> "Session[Read]":
        """All rows of several sessions in one room; nothing of what they have read is copied."""
        routing = Routing.cat([part.routing for part in parts])
        cache = type(parts[0].cache).join([part.cache for part in parts])
        return Session(routing, Gates.cat([part.gates for part in parts]), cache)


@runtime_checkable
class Room(Protocol):
    """Memory for rows in flight, in slots: allocated once, whoever comes and goes."""

    spare: Spare

    def free(self, slots: Sequence[int]) -> None:
        """Let other rows have these slots."""


@runtime_checkable
class Routed(Protocol):
    """The calls that generation and evaluation make of a mixture, whatever its experts are."""

    names: tuple[str, ...]

    @property
    def context(self) -> int: ...
    def route(self, prompts: Prompts) -> Routing: ...
    def score(self, ids: Int[Tensor, "b t"], gates: Gates | None) -> Float[Tensor, "b t v"]: ...
    def room(self, rows: int, tokens: int) -> Room: ...
    def prefill(
        self, prompts: Prompts, room: Any, slots: Sequence[int], forced: Routing | None
    ) -> tuple[Float[Tensor, "b v"], Session[Any]]: ...
    def decode(self, ids: Int[Tensor, " b"], session: Session[Any]) -> tuple[Float[Tensor, "b v"], Session[Any]]: ...


class AdapterMixture(nn.Module):
    """Experts in the slots of one shared base, chosen per sequence: sites `linear` and `ffn`, level `sequence`.

    `trunk`: that many lowest blocks carry no expert, so a router that reads their output (`hidden@k`) shares the
    prompt's own pass. `source` has the experts that compute in memory while they do.
    """

    def __init__(self, decoder: Decoder, decider: Decider, trunk: int, source: ExpertSource = HELD):
        super().__init__()
        self.decoder, self.decider, self.names, self.router = decoder, decider, decider.names, decider.router
        self.trunk, self.source, self.groups = trunk, source, groups(decoder)

    @property
    def context(self) -> int:
        """How many tokens a prompt and what follows it may have together."""
        return self.decoder.config.context

    def route(self, prompts: Prompts) -> Routing:
        """Decide for each prompt, by itself, from a pass of the base."""
        return self.decider.decide(prompts)

    def score(self, ids: Int[Tensor, "b t"], gates: Gates | None) -> Float[Tensor, "b t v"]:
        """Next-token logits of whole sequences under given gates."""
        gates = require(gates, ids)
        with self.source.using(gates.present):
            return self.decoder(ids, None, gates.ready(self.groups)).logits

    def room(self, rows: int, tokens: int) -> Slots:
        """Memory for so many rows of so many tokens, prompt and answer together."""
        return Slots(self.decoder.config, rows, tokens, self.decoder.norm.weight)

    def prefill(
        self, prompts: Prompts, room: Slots, slots: Sequence[int], forced: Routing | None = None
    ) -> tuple[Float[Tensor, "b v"], Session[Cache]]:
        """Read the prompts into these slots, decide (unless `forced`), and return the logits after each prompt's last
        token.
        """
        decoder, layers, feature = self.decoder, len(self.decoder.layers), self.decider.reader.feature
        x, cache = decoder.embed_tokens(prompts.ids), Cache.of(room, slots)
        depth = feature.depth if forced is None and feature.source == "state" else None
        if depth is not None and depth <= self.trunk:
            x, _ = decoder.run(x, cache, range(depth), None)
            routing = self.decider.weigh(pool(x, prompts.lengths, feature), x.device)
        else:
            depth, routing = 0, self.route(prompts) if forced is None else forced
        gates = Gates.of(routing.weights.to(x.dtype)).ready(self.groups)
        with self.source.using(gates.present):
            x, _ = decoder.run(x, cache, range(depth, layers), gates)
            last = x[torch.arange(len(x), device=x.device), prompts.lengths - 1][:, None]
            logits = decoder.head(last, gates)[:, 0]
        return logits, Session(routing, gates, cache.advance(prompts.lengths))

    def decode(self, ids: Int[Tensor, " b"], session: Session[Cache]) -> tuple[Float[Tensor, "b v"], Session[Cache]]:
        """Read one more token of each row and return the logits after it; never re-routes."""
        with self.source.using(session.gates.present):
            logits = self.decoder(ids[:, None], session.cache, session.gates).logits[:, 0]
        return logits, replace(session, cache=session.cache.advance(1))
