"""Whole decoders as experts: each answers its own rows, or their next-token distributions are mixed.

Knows nothing about text, files or how experts were trained. The router reads the base, which may be one of the experts;
the base also gets the rest of a row's weights up to 1, and answers rows that abstain.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from itertools import chain, zip_longest
from typing import Literal, cast, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from moesaic.config import Feature
from moesaic.errors import CompatibilityError, GatesError, RecipeError
from moesaic.hardware import exact
from moesaic.model.deciding import Decider
from moesaic.model.decoder import Decoder
from moesaic.model.features import Prompts, last
from moesaic.model.mixture import Session
from moesaic.model.readings import Readings, Running, Shelves
from moesaic.model.source import HELD, ExpertSource
from moesaic.nn import Pool
from moesaic.ops.ensemble import Answer, Combine, combined
from moesaic.ops.host import to_device, to_host
from moesaic.routing import Gates, Routing
from moesaic.routing.gates import places_of, with_rest

Level = Literal["sequence", "token"]
LEVELS: tuple[Level, ...] = get_args(Level)
READER = -1  # the number of the base's lower blocks, with a cache of their own, for a router that reads those


class ModelMixture(nn.Module):
    """A router over whole models: site `model`, level `sequence` or `token`.

    At level `sequence` the prompt decides; at level `token` all tokens so far do, before every token. Experts read the
    tokens that they have missed when they are next chosen. `combine`: how several distributions become one. `source`
    loads experts while they compute.
    """

    own: Tensor

    def __init__(
        self,
        base: Decoder,
        experts: Sequence[Decoder],
        decider: Decider,
        level: Level = "sequence",
        combine: Combine = "mixture",
        source: ExpertSource = HELD,
    ):
        super().__init__()
        require_readable(decider.reader.feature, level)
        names = decider.names
        every = [*experts, base]
        for name, expert in zip((*names, "base"), every, strict=True):
            if (size := expert.config.vocab_size) != base.config.vocab_size:
                what, expected = "whole models must share one vocabulary", base.config.vocab_size
                raise CompatibilityError(what, field=f"{name}.vocab_size", expected=expected, got=size)
        models = list(dict.fromkeys(every))  # a model in several places is held, and computes, once
        self.models, self.decider, self.names, self.router = nn.ModuleList(models), decider, names, decider.router
        self.level, self.combine = level, combine
        self.number_of_base, self.source = models.index(base), source
        # the base is always in memory, also as an expert
        self.places = [(experts.index(model),) if model is not base else () for model in models]
        self.numbers = [models.index(expert) for expert in every]  # of the model of each expert, and of the base
        self.register_buffer("own", torch.eye(len(models))[self.numbers], persistent=False)

    @property
    def feature(self) -> Feature:
        return self.decider.reader.feature

    @property
    def base(self) -> Decoder:
        return self.model(self.number_of_base)

    @property
    def context(self) -> int:
        """The most tokens of a prompt and its continuation together."""
        return min(self.model(number).config.context for number in range(len(self.models)))

    def model(self, number: int) -> Decoder:
        return cast(Decoder, self.models[number])

    def route(self, prompts: Prompts) -> Routing:
        """Decide for each prompt; at level `token`, about the token after it."""
        return self.decider.decide(prompts)

    def route_and_begin(self, prompts: Prompts) -> tuple[Routing, None]:
        """The decision about prompts; no answer can go on from it, as each model reads its prompts itself."""
        return self.route(prompts), None

    def score(
        self, ids: Int[Tensor, "b t"], gates: Gates | None = None, at: Bool[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "*p v"]:
        """Next-token logits (b, t, v) of whole sequences; `at`: (k, v), after the tokens at these positions alone.

        Without gates, at level `token`, each token is under the router's decision from all tokens before it.
        """
        t, top = ids.shape[1], None
        if gates is not None:
            (shares, places), each = self.portions(gates.weights), t
        elif self.level == "token":
            shares, places, top = self.shares_everywhere(ids)
            each = 1
        else:
            raise GatesError("scoring at level sequence needs gates", hint="route first and pass the gates")
        wanted = [*range(ids.numel())] if at is None else wanted_of(to_host(at))
        parts, held = {}, [{*own} for own in places]
        asked = [[index for index, spot in enumerate(wanted) if spot // each in own] for own in held]
        for number, model in self.in_turn([number for number, own in enumerate(asked) if own]):
            spots = [wanted[index] for index in asked[number]]
            known = top if top is not None and model is self.base else None
            logits = self.logits_at(model, ids, spots, known)
            weights = shares[:, number].index_select(0, to_device([spot // each for spot in spots], ids.device))
            parts[number] = Answer(to_device(asked[number], ids.device), logits[:, None], weights[:, None])
        found = self.combined(parts, len(wanted))[:, 0]
        return found.unflatten(0, ids.shape) if at is None else found

    def logits_at(
        self, model: Decoder, ids: Int[Tensor, "b t"], spots: list[int], known: Float[Tensor, "b t d"] | None
    ) -> Float[Tensor, "p v"]:
        """One model's logits after the tokens at some positions of the flattened ids; `known`: its last states."""
        t = ids.shape[1]
        if known is not None:
            return model.lm_head(known.flatten(0, 1).index_select(0, to_device(spots, ids.device))[None], None)[0]
        number = {row: place for place, row in enumerate(sorted({spot // t for spot in spots}))}
        chosen = ids.index_select(0, to_device([*number], ids.device))
        x, _ = model.run(model.embed_tokens(chosen), None, range(len(model.layers)), None)
        own = [number[spot // t] * t + spot % t for spot in spots]
        return model.head(x.flatten(0, 1).index_select(0, to_device(own, ids.device))[None], None)[0]

    def room(self, rows: int, tokens: int) -> Shelves:
        """Memory for so many rows of so many tokens; each model's cache grows when rows choose it."""
        return Shelves(self.decoders, rows, tokens, self.base.norm.weight.device)

    def pool(self, size: int | None) -> Pool:
        """Memory for rows of any length, of so many bytes for all models together."""
        decoders = self.decoders.items()
        return Pool({number: (one.config, one.norm.weight) for number, one in decoders}, size)

    @property
    def decoders(self) -> dict[int, Decoder]:
        """Each model, and the base once more for its lower blocks."""
        return {**{number: self.model(number) for number in range(len(self.models))}, READER: self.base}

    @property
    def steady(self) -> bool:
        """Whether the decision about a prompt holds for all tokens that follow."""
        return self.level == "sequence"

    def asked(self, routing: Routing, forced: bool) -> tuple[int, ...]:
        """The decoders that may read rows of such decisions: their caches need memory."""
        if self.steady or forced:
            return self.shares(routing.weights).present
        return tuple(number for number in self.decoders if number != READER or self.feature.depth)

    def prefill(
        self, prompts: Prompts, room: Shelves, slots: Sequence[int], forced: Routing | None = None
    ) -> tuple[Float[Tensor, "b v"], Session[Readings]]:
        """Read prompts into these slots and decide (unless `forced`, which also holds for all tokens that follow): the
        logits after each prompt's last token.
        """
        counts = to_host(prompts.lengths)
        readings = self.unread(room, slots, forced is not None).add(prompts.ids, counts)
        if forced is not None:
            routing = forced
        elif self.level == "token":
            readings, routing = self.read_on(readings, prompts.ids, counts)
        else:
            routing = self.route(prompts)
        gates = self.shares(routing.weights)
        return self.answer(readings, gates), Session(routing, gates, readings)

    def unread(self, room: Shelves | Pool, slots: Sequence[int], forced: bool) -> Readings:
        """Rows without tokens."""
        running = None
        if self.level == "token":
            nothing = self.base.norm.weight.new_zeros(len(slots), len(self.base.norm.weight))
            running = Running((not forced,) * len(slots), nothing.to(exact(nothing.dtype)), nothing)
        return Readings(room, tuple(slots), (0,) * len(slots), running)

    def begin(
        self, room: Pool, slot: int, known: Int[Tensor, "1 t"], routing: Routing, forced: bool
    ) -> Session[Readings]:
        """A row whose first tokens are in the slot already, by the models that it asks; `read` reads the others."""
        gates, t = self.shares(routing.weights), known.shape[1]
        readings = self.unread(room, (slot,), forced).add(known, [t])
        for number in self.asked(routing, forced):
            room.shelf(number).read[slot] = t
        return Session(routing, gates, readings)

    def decode(
        self, ids: Int[Tensor, " b"], session: Session[Readings]
    ) -> tuple[Float[Tensor, "b v"], Session[Readings]]:
        return self.read(ids[:, None], [1] * len(ids), session)

    def read(
        self, ids: Int[Tensor, "b t"], counts: Sequence[int], session: Session[Readings]
    ) -> tuple[Float[Tensor, "b v"], Session[Readings]]:
        """Read the next tokens of each row, `counts` of them and padding, and return the logits after the last.

        Decides anew only at level `token` and for rows without a forced decision; such rows all have as many new
        tokens. A decision is where the host waits for the device: it says which models compute.
        """
        routing, gates, readings = session.routing, session.gates, session.cache.add(ids, counts)
        if readings.running is not None and (rows := readings.running.rows):
            anew = to_device(rows, ids.device)
            readings, decided = self.read_on(readings, ids[anew], [counts[row] for row in rows])
            routing = routing.put(anew, decided)
            gates = self.shares(routing.weights)
        return self.answer(readings, gates), Session(routing, gates, readings)

    def shares(self, weights: Float[Tensor, "n e"]) -> Gates:
        """The weights of experts as shares of the models, the base among them."""
        return Gates.placed(*self.portions(weights))

    def portions(self, weights: Float[Tensor, "n e"]) -> tuple[Float[Tensor, "n m"], list[list[int]]]:
        """The shares of the models, and the rows of each; waits for the device once."""
        like = self.base.norm.weight
        whole = with_rest(weights.to(like.device, exact(like.dtype), non_blocking=True), range(len(self.names)))
        known = to_host(whole)
        if any(share < 0 for row in known for share in row):
            raise GatesError("weights of whole models are shares", expected="a sum of 1 at most", got="more")
        places = places_of(known, whole.shape[1])
        if len(self.models) == len(self.numbers):
            return whole, places
        merged = [set[int]() for _ in self.models]
        for number, rows in zip(self.numbers, places, strict=True):
            merged[number].update(rows)
        return whole @ self.own.to(whole), [*map(sorted, merged)]

    def answer(self, readings: Readings, shares: Gates) -> Float[Tensor, "n v"]:
        """The logits after the last token of each row; models without a share do not compute."""
        groups, parts = {number: (rows, weights) for number, rows, weights in shares.groups()}, {}
        assert shares.places is not None
        for number, model in self.in_turn(groups):
            rows, weights = groups[number]
            logits = self.ask(number, model, shares.places[number], readings)
            parts[number] = Answer(rows, logits[:, None], weights[:, None])
        return self.combined(parts, shares.num_rows)[:, 0]

    def combined(self, parts: dict[int, Answer], num_rows: int) -> Float[Tensor, "n t v"]:
        """The logits of all rows, summed in the order of the models, independent of which was in memory first."""
        return combined([parts[number] for number in sorted(parts)], num_rows, self.combine)

    def in_turn(self, numbers: Collection[int]) -> Iterator[tuple[int, Decoder]]:
        """Yield each model while it is in memory, loaded ones first; the next one may be fetched meanwhile."""
        order = sorted(numbers, key=lambda number: self.source.missing(self.places[number]))
        for number, next_one in zip_longest(order, order[1:]):
            with self.source.using(self.places[number]):
                if next_one is not None:
                    self.source.expect(self.places[next_one])
                yield number, self.model(number)

    def ask(self, number: int, model: Decoder, rows: Sequence[int], readings: Readings) -> Float[Tensor, "g v"]:
        """The logits of one model after the last token of some rows."""
        running = readings.running
        read = running is not None and self.feature.depth is None and model is self.base
        if running and read and all(running.anew[row] for row in rows):  # by the router, up to their last states
            states = running.last.index_select(0, to_device(rows, running.last.device))
            return model.lm_head(states[:, None], None)[:, 0]
        x, counts = readings.read(number, model, rows, range(len(model.layers)))
        return model.head(last(x, counts)[:, None], None)[:, 0]

    def read_on(self, readings: Readings, ids: Int[Tensor, "g t"], counts: Sequence[int]) -> tuple[Readings, Routing]:
        """Read new tokens of the rows that are decided at every token, and decide about these rows."""
        base, depth, running = self.base, self.feature.depth, readings.running
        assert running is not None
        rows = running.rows
        if depth == 0:
            x = base.embed_tokens(ids)
        else:
            number = self.number_of_base if depth is None else READER
            x, _ = readings.read(number, base, rows, range(len(base.layers) if depth is None else depth))
        running = running.add(base.norm(x) if depth is None else x, counts)
        anew = to_device(rows, ids.device)
        if self.feature.pool == "last":
            features = running.last[anew].to(running.total.dtype)
        else:
            features = running.total[anew] / to_device([readings.lengths[row] for row in rows], ids.device)[:, None]
        return replace(readings, running=running), self.decider.weigh(features, ids.device, [])

    def shares_everywhere(
        self, ids: Int[Tensor, "b t"]
    ) -> tuple[Float[Tensor, "p m"], list[list[int]], Float[Tensor, "b t d"] | None]:
        """The share of every model in the token after each position of the flattened ids, the positions of each model,
        and the base's last states if computed.
        """
        base, depth = self.base, self.feature.depth
        x, _ = base.run(base.embed_tokens(ids), None, range(len(base.layers) if depth is None else depth), None)
        x = base.norm(x) if depth is None else x
        so_far = torch.arange(1, ids.shape[1] + 1, device=ids.device)[:, None]
        wide = x.to(exact(x.dtype))
        features = wide if self.feature.pool == "last" else wide.cumsum(1) / so_far
        shares, places = self.portions(self.decider.weigh(features.flatten(0, 1), x.device, []).weights)
        return shares, places, x if depth is None else None


def wanted_of(at: list[list[bool]]) -> list[int]:
    """The positions in the flattened mask that are true."""
    return [spot for spot, one in enumerate(chain.from_iterable(at)) if one]


def require_readable(feature: Feature, level: Level) -> None:
    """Refuse features that whole models do not have, or not token by token."""
    if feature.source == "projection":
        hint = "choose a feature of the base, and give prompts for each expert"
        raise RecipeError("an arrow router needs adapters, not whole models", field="feature", hint=hint)
    if level == "token" and (feature.source != "state" or feature.pool == "none"):
        expected = "embedding_mean, hidden_mean, hidden_last, hidden@K or hidden@K_last"
        what, got = "a router at level token reads pooled states", "texts, or all states"
        raise RecipeError(what, field="feature", expected=expected, got=got)
