"""Decisions about prompts: a router, the feature that it reads, and the selection from its logits, as one value.

Serves mixtures and programs that only route. Knows nothing about files or generation.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from moesaic.config import Feature
from moesaic.errors import CompatibilityError
from moesaic.hardware import exact
from moesaic.model.decoder import Decoder
from moesaic.model.features import Body, Prompts, project, read
from moesaic.model.text_counts import characters, wording
from moesaic.ops.host import to_device
from moesaic.routing import Routing, Selection
from moesaic.routing.guard import Opinion, Ruling, guarded
from moesaic.routing.routers import ArrowRouter, Features, Router

Judge = Callable[[Features, Float[Tensor, "n s"]], Opinion]
"""Features and wording of n prompts -> a guard's opinion."""


@dataclass(frozen=True)
class Reader:
    """Prompts -> the feature that a router reads.

    `body`: the base, with slots for `num_experts`; None where the feature is the text or counts of it.
    `prototypes`: directions of a base's linears, for projections.
    """

    feature: Feature
    body: Body | None
    num_experts: int
    prototypes: Mapping[str, Float[Tensor, "e i"]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.body is None and self.feature.reads_base:
            raise CompatibilityError("no base for the router to read", field="feature", hint="load the base")

    def __call__(self, prompts: Prompts) -> Features:
        if self.feature.source == "text":
            return prompts.texts
        if not self.feature.reads_base:
            counts = (wording if self.feature.source == "wording" else characters)(prompts.texts)
            if self.body is None:
                return counts
            like = next(self.body.layers.parameters())
            return counts.to(like.device, exact(like.dtype), non_blocking=True)
        assert self.body is not None
        if self.feature.source == "projection":
            decoder = cast(Decoder, self.body)  # adapters of a decoder gave the prototypes
            return project(decoder, self.num_experts, prompts, self.prototypes)
        if self.feature.source == "shares":
            hint = "load the mixture, which decides as it reads"
            raise CompatibilityError("no router reads prompts: the mixture's layers route tokens", hint=hint)
        return read(self.feature, self.body, self.num_experts, prompts)


@dataclass(frozen=True)
class Decider:
    """Prompts -> Routing over `names`.

    `disabled`: indices of experts that are never chosen; a caller may still name one. `guard`: judges which
    prompts the base answers, by its `ruling`; None: the router never abstains.
    """

    names: tuple[str, ...]
    router: Router
    reader: Reader
    selection: Selection
    disabled: tuple[int, ...] = ()
    guard: Judge | None = None
    ruling: Ruling | None = None

    @staticmethod
    def over(
        body: Body | None,
        names: tuple[str, ...],
        router: Router,
        feature: Feature,
        selection: Selection,
        disabled: Collection[str] = (),
        guard: Judge | None = None,
        ruling: Ruling | None = None,
    ) -> "Decider":
        """A decider with a router that reads this base; `disabled`: by name."""
        prototypes = router.prototypes if isinstance(router, ArrowRouter) else {}
        silent = tuple(index for index, name in enumerate(names) if name in disabled)
        reader = Reader(feature, body, len(names), prototypes)
        return Decider(names, router, reader, selection, silent, guard, ruling)

    def decide(self, prompts: Prompts) -> Routing:
        return self.weigh(self.reader(prompts), prompts.ids.device, prompts.texts)

    def weigh(self, features: Features, device: torch.device, texts: list[str]) -> Routing:
        """Features -> weights on this device; with all experts disabled, every row abstains. `texts`: for the guard."""
        logits = self.router(features).to(device, non_blocking=True)
        if self.disabled:
            logits = logits.index_fill(1, to_device(self.disabled, device), float("-inf"))
        judged = None if self.guard is None else self.guard(features, wording(texts)).to(device)
        return guarded(self.selection, logits, judged, self.ruling)
