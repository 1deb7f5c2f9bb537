"""A base or one expert without a router, with the calls of a mixture, so that whatever asks a mixture asks them too.

Knows nothing about files or texts.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from moesaic.artefacts.base import Base
from moesaic.artefacts.router import StoredRouter
from moesaic.artefacts.stored import Stored
from moesaic.kinds import AnyKind
from moesaic.kinds.kind import Mixing
from moesaic.model.decoder import Decoder
from moesaic.model.mixture import AdapterMixture, Routed
from moesaic.routing import Selection
from moesaic.routing.routers import TrainedRouter

TEXT = "text"
"""The feature that costs nothing to read."""


class EvenRouter(TrainedRouter):
    """Prefers no expert: of a single one, all prompts are its own; of none, all are the base's."""

    def __init__(self, num_experts: int):
        super().__init__()
        self.num_experts = num_experts

    @property
    def shape(self) -> dict[str, Any]:
        return {"num_experts": self.num_experts}

    def forward(self, features: list[str]) -> Float[Tensor, "n e"]:
        return torch.zeros(len(features), self.num_experts)


def router_over(names: tuple[str, ...]) -> StoredRouter:
    return StoredRouter(EvenRouter(len(names)).eval(), "even", names, TEXT, Selection(kind="soft"), {})


def base_alone(decoder: Decoder) -> Routed:
    """A base as a mixture without experts."""
    return AdapterMixture(decoder, router_over(()).over(None), len(decoder.layers)).eval()


def expert_alone(kind: AnyKind, base: Base, name: str, expert: Stored) -> Routed:
    """One expert over its base as a mixture of a single expert; the base's decoder becomes that of the mixture."""
    return kind.join(base, [expert], router_over((name,)), Mixing())
