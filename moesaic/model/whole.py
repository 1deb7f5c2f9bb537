"""Whole decoders as experts: each answers its own rows, or their next-token distributions are mixed.

Knows nothing about text, files or how experts were trained. The router reads the base, which may be one of the experts;
what a row's weights leave of 1 is the base's, so a row that abstains is answered by it.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import zip_longest
from typing import Literal, cast, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from moesaic.config import Feature
from moesaic.errors import CompatibilityError, GatesError, RecipeError
from moesaic.model.deciding import Decider
from moesaic.model.decoder import Decoder
from moesaic.model.features import Prompts
from moesaic.model.mixture import Session
from moesaic.model.readings import Readings, Running, Shelves
from moesaic.model.source import HELD, ExpertSource
from moesaic.ops.ensemble import Answer, Combine, combined
from moesaic.routing import Gates, Routing

Level = Literal["sequence", "token"]
LEVELS: tuple[Level, ...] = get_args(Level)
READER = -1
"""The number of the base where a router reads only some of its blocks: they have a cache of their own."""


class ModelMixture(nn.Module):
    """A router over whole models: site `model`, level `sequence` or `token`.

    At level `sequence` the prompt decides. At level `token` what has been read so far does, before every token; experts
    that are not asked do not read, and catch up when they are. `combine`: how several distributions become one.
    `source` has the expert that is asked in memory while it computes.
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
                what, expected = "whole models share one vocabulary", base.config.vocab_size
                raise CompatibilityError(what, field=f"{name}.vocab_size", expected=expected, got=size)
        models = list(dict.fromkeys(every))  # one that stands in several places is held, and asked, once
        self.models, self.decider, self.names, self.router = nn.ModuleList(models), decider, names, decider.router
        self.level, self.combine = level, combine
        self.number_of_base, self.source = models.index(base), source
        # the base is always there, also where it is an expert
        self.places = [(experts.index(model),) if model is not base else () for model in models]
        own = torch.eye(len(models))[[models.index(expert) for expert in every]]
        self.register_buffer("own", own, persistent=False)

    @property
    def feature(self) -> Feature:
        """What its router reads."""
        return self.decider.reader.feature

    @property
    def base(self) -> Decoder:
        return self.model(self.number_of_base)

    @property
    def context(self) -> int:
        """How many tokens a prompt and what follows it may have together."""
        return min(self.model(number).config.context for number in range(len(self.models)))

    def model(self, number: int) -> Decoder:
        return cast(Decoder, self.models[number])

    def route(self, prompts: Prompts) -> Routing:
        """Decide for each prompt, by itself, from a pass of the base; at level `token`, about the token after it."""
        return self.decider.decide(prompts)

    def score(self, ids: Int[Tensor, "b t"], gates: Gates | None = None) -> Float[Tensor, "b t v"]:
        """Next-token logits of whole sequences under given gates; without gates, at level `token`, under its own.

        Its own decisions are those of decoding: about each token from all that stand before it.
        """
        top: Tensor | None = None
        if gates is not None:
            shares = self.shares(gates).weights[:, None]
        elif self.level == "token":
            shares, top = self.shares_everywhere(ids)
        else:
            raise GatesError("decisions are made from prompts, and none are given", hint="route first, pass the gates")
        parts = []
        asked = [number for number in range(len(self.models)) if (shares[..., number] != 0).any()]
        for number, next_one in self.in_turn(asked):
            rows = (shares[..., number] != 0).any(1).nonzero().flatten()
            with self.there(number, next_one) as model:
                if top is not None and model is self.base:
                    logits = model.lm_head(top[rows], None)
                else:
                    logits = model(ids[rows]).logits
            parts.append((number, Answer(rows, logits, shares[rows, :, number].expand(logits.shape[:2]))))
        return combined(in_order(parts), len(ids), self.combine)

    def room(self, rows: int, tokens: int) -> Shelves:
        """Memory for so many rows of so many tokens; a model's caches are allocated when rows ask it."""
        return Shelves(rows, tokens, self.base.norm.weight.device)

    def prefill(
        self, prompts: Prompts, room: Shelves, slots: Sequence[int], forced: Routing | None = None
    ) -> tuple[Float[Tensor, "b v"], Session[Readings]]:
        """Read the prompts into these slots, decide (unless `forced`, which then holds for all that follows), and
        return the logits after each prompt's last token.
        """
        readings = Readings.begin(room, slots, prompts.ids, prompts.lengths.tolist())
        if self.level == "token":
            nothing = self.base.norm.weight.new_zeros(len(slots), len(self.base.norm.weight))
            readings = replace(readings, running=Running((forced is None,) * len(slots), nothing, nothing))
        if forced is not None:
            routing = forced
        elif self.level == "token":
            readings, routing = self.read_on(readings, prompts.ids, prompts.lengths)
        else:
            routing = self.route(prompts)
        gates = self.shares(self.gates(routing))
        return self.answer(readings, gates), Session(routing, gates, readings)

    def decode(
        self, ids: Int[Tensor, " b"], session: Session[Readings]
    ) -> tuple[Float[Tensor, "b v"], Session[Readings]]:
        """Read one more token of each row and return the logits after it; rows are decided anew only at level `token`,
        and not where their expert was named.
        """
        routing, gates, readings = session.routing, session.gates, session.cache.add(ids)
        if readings.running is not None and (rows := readings.running.rows):
            anew = torch.tensor(rows, device=ids.device)
            readings, decided = self.read_on(readings, ids[anew][:, None], torch.ones_like(anew))
            routing = routing.put(anew, decided)
            gates = self.shares(self.gates(routing))
        return self.answer(readings, gates), Session(routing, gates, readings)

    def gates(self, routing: Routing) -> Gates:
        return Gates.of(routing.weights.to(self.base.norm.weight.dtype))

    def shares(self, gates: Gates) -> Gates:
        """The same decisions by model, the base among them."""
        whole = gates.with_base(tuple(range(len(self.names))))
        if (whole.weights < 0).any():
            raise GatesError("weights of models are shares of one answer", expected="a sum of 1 at most", got="more")
        merged = len(self.models) < len(self.own)
        return Gates.of(whole.weights @ self.own.to(whole.weights)) if merged else whole

    def answer(self, readings: Readings, shares: Gates) -> Float[Tensor, "n v"]:
        """The logits after the last token of each row; models without a say do not compute. `shares`: by model."""
        groups = {number: (rows, weights) for number, rows, weights in shares.groups()}
        parts = []
        for number, next_one in self.in_turn(groups):
            rows, weights = groups[number]
            with self.there(number, next_one) as model:
                logits = self.ask(number, model, rows.tolist(), readings)
            parts.append((number, Answer(rows, logits[:, None], weights[:, None])))
        return combined(in_order(parts), shares.num_rows, self.combine)[:, 0]

    def in_turn(self, numbers: Collection[int]) -> Iterator[tuple[int, int | None]]:
        """The models to ask, those in memory first, each with the one after it: all are fetched once at most."""
        order = sorted(numbers, key=lambda number: self.source.missing(self.places[number]))
        yield from zip_longest(order, order[1:])

    @contextmanager
    def there(self, number: int, next_one: int | None) -> Iterator[Decoder]:
        """A model while it is in memory; the next one may be fetched meanwhile."""
        with self.source.using(self.places[number]):
            if next_one is not None:
                self.source.expect(self.places[next_one])
            yield self.model(number)

    def ask(self, number: int, model: Decoder, rows: list[int], readings: Readings) -> Float[Tensor, "g v"]:
        """The logits of one model after the last token of some rows."""
        running = readings.running
        read = running is not None and self.feature.depth is None and model is self.base
        if running and read and all(running.anew[row] for row in rows):  # by the router, up to their last states
            return model.lm_head(running.last[torch.tensor(rows, device=running.last.device)][:, None], None)[:, 0]
        x, last = readings.read(number, model, rows, range(len(model.layers)))
        return model.head(x[torch.arange(len(x), device=x.device), last][:, None], None)[:, 0]

    def read_on(
        self, readings: Readings, ids: Int[Tensor, "g t"], lengths: Int[Tensor, " g"]
    ) -> tuple[Readings, Routing]:
        """The router's decisions about the rows that are decided at every token; these tokens of them are new."""
        base, depth, running = self.base, self.feature.depth, readings.running
        assert running is not None
        rows = running.rows
        if depth == 0:
            x = base.embed_tokens(ids)
        else:
            number = self.number_of_base if depth is None else READER
            x, _ = readings.read(number, base, rows, range(len(base.layers) if depth is None else depth))
        running = running.add(base.norm(x) if depth is None else x, lengths)
        anew = torch.tensor(rows, device=ids.device)
        if self.feature.pool == "last":
            features = running.last[anew]
        else:
            features = (
                running.total[anew] / torch.tensor([readings.lengths[row] for row in rows], device=ids.device)[:, None]
            )
        return replace(readings, running=running), self.decider.weigh(features, ids.device)

    def shares_everywhere(
        self, ids: Int[Tensor, "b t"]
    ) -> tuple[Float[Tensor, "b t m"], Float[Tensor, "b t d"] | None]:
        """The share of every model in the token after each position, and the base's last states, if they were read."""
        base, depth = self.base, self.feature.depth
        x, _ = base.run(base.embed_tokens(ids), None, range(len(base.layers) if depth is None else depth), None)
        x = base.norm(x) if depth is None else x
        so_far = torch.arange(1, ids.shape[1] + 1, device=ids.device)[:, None]
        features = x if self.feature.pool == "last" else x.cumsum(1) / so_far
        shares = self.shares(self.gates(self.decider.weigh(features.flatten(0, 1), x.device))).weights
        return shares.unflatten(0, ids.shape), x if depth is None else None


def in_order(parts: list[tuple[int, Answer]]) -> list[Answer]:
    """What models say, by their numbers: sums must not depend on who was in memory first."""
    return [part for _, part in sorted(parts, key=lambda part: part[0])]


def require_readable(feature: Feature, level: Level) -> None:
    """Refuse what cannot be read of whole models, or not token by token."""
    if feature.source == "projection":
        hint = "route by a feature of the base: give prompts for each expert"
        raise RecipeError("a router made from adapters cannot tell whole models apart", field="feature", hint=hint)
    if level == "token" and (feature.source != "state" or feature.pool == "none"):
        expected = "embedding_mean, hidden_mean, hidden_last, hidden@K or hidden@K_last"
        what = "what decides at every token reads states that run with it"
        raise RecipeError(what, field="feature", expected=expected, got="texts, or all states")
