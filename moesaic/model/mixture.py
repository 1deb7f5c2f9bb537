"""The mixture: base + experts + router as one model that routes once, from the prompt, and then only computes.

Knows nothing about text, files or how experts were trained. Between calls all state is in the caller's Session and in
the room that holds the slots of its rows: rows join, leave and multiply by `join`, `select` and `repeat`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from moesaic.adapters.feedforward import groups
from moesaic.hardware import exact
from moesaic.model.deciding import Decider
from moesaic.model.decoder import Decoder
from moesaic.model.features import Prompts, last, pool
from moesaic.model.readings import Readings
from moesaic.model.source import HELD, ExpertSource
from moesaic.nn import Cache, Pool, Slots, Spare
from moesaic.ops.host import to_device, to_host
from moesaic.routing import Gates, Routing, require

Memory = TypeVar("Memory", Cache, Readings)


@dataclass(frozen=True)
class Session(Generic[Memory]):
    """Rows in flight: their routing, gates and cache.

    A value: a step returns the next one. The tensors of the cache belong to a room, and steps write into its slots;
    `select`, `repeat` and `join` copy none of them, except into the new slots of `repeat`.
    """

    routing: Routing
    gates: Gates
    cache: Memory

    @property
    def slots(self) -> tuple[int, ...]:
        return self.cache.slots

    def select(self, rows: Sequence[int]) -> "Session[Memory]":
        kept = to_device(rows, self.gates.rows.device)
        return Session(self.routing[kept], self.gates.select(rows), self.cache.select(rows))

    def repeat(self, slots: Sequence[Sequence[int]]) -> "Session[Memory]":
        """Each row once in each of its slots, the first of which is its current slot."""
        rows = [row for row, some in enumerate(slots) for _ in some]
        kept = to_device(rows, self.gates.rows.device)
        return Session(self.routing[kept], self.gates.select(rows), self.cache.repeat(slots))

    @staticmethod
    def join(parts: Sequence["Session[Memory]"]) -> "Session[Memory]":
        """All rows of several sessions in one room."""
        routing = Routing.cat([part.routing for part in parts])
        cache = type(parts[0].cache).join([part.cache for part in parts])
        return Session(routing, Gates.cat([part.gates for part in parts]), cache)


@dataclass(frozen=True)
class Begun:
    """What a router has read of one prompt: the states behind the blocks that no expert changes, and their cache."""

    states: Float[Tensor, "1 t d"]
    cache: Cache

    @property
    def tokens(self) -> int:
        return self.states.shape[1]


@runtime_checkable
class Room(Protocol):
    """Memory for rows in flight, in slots that are allocated once; `spare`: the free ones."""

    spare: Spare

    def free(self, slots: Sequence[int]) -> None: ...


@runtime_checkable
class Routed(Protocol):
    """The calls that generation and evaluation make of a mixture of any kind of experts."""

    names: tuple[str, ...]

    @property
    def level(self) -> str: ...
    @property
    def context(self) -> int: ...
    def route(self, prompts: Prompts) -> Routing: ...
    def score(
        self, ids: Int[Tensor, "b t"], gates: Gates | None, at: Bool[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "*p v"]: ...
    def room(self, rows: int, tokens: int) -> Room: ...
    def prefill(
        self, prompts: Prompts, room: Any, slots: Sequence[int], forced: Routing | None
    ) -> tuple[Float[Tensor, "b v"], Session[Any]]: ...
    def decode(self, ids: Int[Tensor, " b"], session: Session[Any]) -> tuple[Float[Tensor, "b v"], Session[Any]]: ...


@runtime_checkable
class Chunked(Routed, Protocol):
    """A mixture whose rows may read in chunks, in memory of different sizes.

    `steady`: whether the decision about a prompt holds for all tokens that follow.
    """

    @property
    def steady(self) -> bool: ...
    def route_and_begin(self, prompts: Prompts) -> tuple[Routing, Begun | None]: ...
    def pool(self, size: int | None) -> Pool: ...
    def asked(self, routing: Routing, forced: bool) -> tuple[int, ...]: ...
    def begin(
        self, room: Pool, slot: int, known: Int[Tensor, "1 t"], routing: Routing, forced: bool
    ) -> Session[Any]: ...
    def read(
        self, ids: Int[Tensor, "b t"], counts: Sequence[int], session: Session[Any]
    ) -> tuple[Float[Tensor, "b v"], Session[Any]]: ...


@runtime_checkable
class Beginning(Chunked, Protocol):
    """A mixture whose answers can go on where its router has stopped reading."""

    def take(self, begun: Begun, session: Session[Any]) -> None: ...
    def read_on(
        self, states: Float[Tensor, "b t d"], counts: Sequence[int], session: Session[Any]
    ) -> tuple[Float[Tensor, "b v"], Session[Any]]: ...


class SharedDecoder(nn.Module):
    """What mixtures inside one decoder have in common: its memory, and the steps after a decision.

    `source` loads experts while they compute.
    """

    def __init__(self, decoder: Decoder, decider: Decider, source: ExpertSource = HELD):
        super().__init__()
        self.decoder, self.decider, self.names, self.router = decoder, decider, decider.names, decider.router
        self.source = source

    @property
    def context(self) -> int:
        """The most tokens of a prompt and its continuation together."""
        return self.decoder.config.context

    def room(self, rows: int, tokens: int) -> Slots:
        return Slots(self.decoder.config, rows, tokens, self.decoder.norm.weight)

    def decode(self, ids: Int[Tensor, " b"], session: Session[Cache]) -> tuple[Float[Tensor, "b v"], Session[Cache]]:
        """Read one more token of each row, under its decision, and return the logits after it."""
        return self.read(ids[:, None], [1] * len(ids), session)

    def pool(self, size: int | None) -> Pool:
        """Memory for rows of any length, of so many bytes together."""
        return Pool({0: (self.decoder.config, self.decoder.norm.weight)}, size)

    def asked(self, routing: Routing, forced: bool) -> tuple[int, ...]:
        """The decoders whose caches need memory: the one that all experts share."""
        return (0,)

    def read(
        self, ids: Int[Tensor, "b t"], counts: Sequence[int], session: Session[Cache]
    ) -> tuple[Float[Tensor, "b v"], Session[Cache]]:
        """Read the next tokens of each row, `counts` of them and padding: the logits after the last."""
        return self.above(self.decoder.embed_tokens(ids), 0, counts, session)

    def above(
        self, x: Float[Tensor, "b t d"], lowest: int, counts: Sequence[int], session: Session[Cache]
    ) -> tuple[Float[Tensor, "b v"], Session[Cache]]:
        """Read tokens whose states below the block `lowest` are known."""
        decoder, gates = self.decoder, session.gates
        with self.source.using(gates.present):
            x, _ = decoder.run(x, session.cache, range(lowest, len(decoder.layers)), gates)
            logits = decoder.head(last(x, counts)[:, None], gates)[:, 0]
        return logits, replace(session, cache=session.cache.advance_each(counts))


class AdapterMixture(SharedDecoder):
    """Experts in the slots of one shared base, chosen per sequence: sites `linear` and `ffn`, level `sequence`.

    `trunk`: the number of lowest blocks without experts; a router that reads their output (`hidden@k`) shares the
    prompt's own pass.
    """

    steady, level = True, "sequence"

    def __init__(self, decoder: Decoder, decider: Decider, trunk: int, source: ExpertSource = HELD):
        super().__init__(decoder, decider, source)
        self.trunk, self.groups = trunk, groups(decoder)

    def route(self, prompts: Prompts) -> Routing:
        return self.decider.decide(prompts)

    def score(
        self, ids: Int[Tensor, "b t"], gates: Gates | None, at: Bool[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "*p v"]:
        """Next-token logits (b, t, v) of whole sequences; `at`: (k, v), after the tokens at these positions alone."""
        gates = require(gates, ids).to(self.decoder.norm.weight)
        with self.source.using(gates.present):
            return self.decoder.score(ids, gates.ready(self.groups), at)

    @property
    def shared(self) -> int:
        """Blocks that the router reads through and no expert changes: one pass decides and answers. 0: none."""
        feature = self.decider.reader.feature
        depth = feature.depth if feature.source == "state" else None
        return depth if depth is not None and depth <= self.trunk else 0

    def below(self, prompts: Prompts, cache: Cache) -> tuple[Float[Tensor, "b t d"], Routing]:
        """Read prompts through the shared blocks: the states behind them, and the decisions."""
        decoder, feature = self.decoder, self.decider.reader.feature
        x, _ = decoder.run(decoder.embed_tokens(prompts.ids), cache, range(self.shared), None)
        return x, self.decider.weigh(pool(x, prompts.lengths, feature), x.device, prompts.texts)

    def prefill(
        self, prompts: Prompts, room: Slots, slots: Sequence[int], forced: Routing | None = None
    ) -> tuple[Float[Tensor, "b v"], Session[Cache]]:
        """Read prompts into these slots and decide (unless `forced`): the logits after each prompt's last token."""
        cache, counts = Cache.of(room, slots), to_host(prompts.lengths)
        lowest = self.shared if forced is None else 0
        if lowest:
            x, routing = self.below(prompts, cache)
        else:
            x, routing = self.decoder.embed_tokens(prompts.ids), self.route(prompts) if forced is None else forced
        gates = Gates.of(routing.weights.to(exact(x.dtype))).ready(self.groups)
        return self.above(x, lowest, counts, Session(routing, gates, cache))

    def route_and_begin(self, prompts: Prompts) -> tuple[Routing, Begun | None]:
        """The decision about one prompt, and what `read_on` goes on from, if the router has read any of it."""
        if not self.shared:
            return self.route(prompts), None
        config = replace(self.decoder.config, num_layers=self.shared)
        cache = Cache.empty(config, 1, prompts.ids.shape[1], self.decoder.norm.weight)
        x, routing = self.below(prompts, cache)
        return routing, Begun(x, cache)

    def take(self, begun: Begun, session: Session[Cache]) -> None:
        """Give the only row of a session the keys and values of the shared blocks."""
        session.cache.take(begun.cache, begun.tokens)

    def read_on(
        self, states: Float[Tensor, "b t d"], counts: Sequence[int], session: Session[Cache]
    ) -> tuple[Float[Tensor, "b v"], Session[Cache]]:
        """`read` of tokens by their states behind the shared blocks, whose keys and values the rows have."""
        return self.above(states, self.shared, counts, session)

    def begin(self, room: Pool, slot: int, known: Int[Tensor, "1 t"], routing: Routing, forced: bool) -> Session[Cache]:
        """A row whose first tokens are in the slot already; `read` reads the others."""
        gates = Gates.of(routing.weights.to(exact(self.decoder.norm.weight.dtype))).ready(self.groups)
        return Session(routing, gates, Cache.of(room.shelf(0), (slot,), [known.shape[1]]))
