"""What the training of any expert is made of: a plan, and a course that teaches by it, on texts or on labels.

Knows nothing about where experts lie, nor which of several trainings is kept.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from moesaic.adapters import Adapter, Design, adapt
from moesaic.adapters.blocks import Blocks
from moesaic.adapters.feedforward import FFN
from moesaic.data.rows import Example
from moesaic.model.classifier import Head
from moesaic.model.decoder import Decoder
from moesaic.model.encoder import Encoder
from moesaic.routing import Gates
from moesaic.runs.workshop import Workshop
from moesaic.sections.layers import layer_range
from moesaic.sections.training import Train

R = TypeVar("R")

Expert = Adapter | FFN | Decoder
"""A contribution apart from its folder."""


@dataclass(frozen=True)
class Whole:
    """What a whole model is before it has values of its own: the base, all of which learns."""


@dataclass(frozen=True)
class Plan:
    """What one contender is: its design, its examples by domain, its training settings.

    `frozen`: whether a head, where it has one, stays as it is drawn.
    """

    design: Design | Blocks | Whole
    layers: str | None
    train: dict[str, list[Example]]
    validation: dict[str, list[Example]]
    settings: Train
    frozen: bool = False


@dataclass(frozen=True)
class Lesson:
    """What the loop is handed for one training: see `train.loop.fit`."""

    parameters: Mapping[str, nn.Parameter]
    batch: Callable[[int], Any]
    loss: Callable[[Any], tuple[Tensor, int]]
    validate: Callable[[], float]
    names: Callable[[int], list[str]]


@dataclass(frozen=True)
class Made:
    """What a training leaves: an expert, what it measures on validation, and that in words."""

    expert: Expert
    head: Head | None
    metrics: dict[str, float]
    told: str


@runtime_checkable
class Course(Protocol):
    """How contenders are taught: every training of one starts from the same weights and sees the same order of rows."""

    def rows(self) -> dict[str, int]:
        """How many rows it learns from and is chosen by, and how many of them were cut."""

    def lesson(self, plan: Plan) -> Lesson:
        """One training, from its beginning."""

    def made(self, plan: Plan, state: Mapping[str, Tensor], best: float) -> Made:
        """What the parameters of a lesson have become."""

    def logged(self, row: dict[str, Any]) -> dict[str, Any]:
        """A step as its log has it."""

    def outcome(self, best: float) -> float:
        """What a training reached, as manifests tell it."""


def alone(rows: int) -> Gates:
    """All rows on the only expert there is."""
    return Gates.one(0, rows, 1, torch.zeros(1))


def adapted(workshop: Workshop, plan: Plan) -> tuple[Decoder | Encoder, Adapter]:
    """A frozen base with one fresh adapter, and that adapter: the same at every call."""
    body = workshop.fresh_body()
    body.requires_grad_(False)
    layers = layer_range(plan.layers, body.config.num_layers)
    assert isinstance(plan.design, Design)
    fresh = plan.design.fresh(body, layers, torch.Generator().manual_seed(workshop.recipe.seed))
    adapt(body, fresh)
    return body, fresh


def even(domains: list[list[R]]) -> list[R]:
    """All rows, small domains repeated, so that a joint training sees as many rows of every domain."""
    most = max(len(rows) for rows in domains)
    return [rows[i % len(rows)] for rows in domains for i in range(most)]
