"""A task: what the rows of a run are, and everything that depends on it.

Two tasks exist, one for texts and one for rows with labels. Knows nothing about which parts a run has.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from moesaic.artefacts.backbone import Backbone
from moesaic.artefacts.base import Base
from moesaic.data.rows import Example
from moesaic.data.splits import take
from moesaic.errors import CompatibilityError
from moesaic.evaluate.statistics import Judged
from moesaic.evaluate.verdict import Cost
from moesaic.kinds import AnyKind
from moesaic.kinds.kind import Started, Listener, Stored
from moesaic.model.classifier import Head, Pool, usual_pool
from moesaic.model.decoder import Decoder
from moesaic.model.encoder import Encoder
from moesaic.model.features import Prompts
from moesaic.runs.directory import RunDir
from moesaic.sections.training import Train
from moesaic.tasks.materials import Materials
from moesaic.tasks.models import Models
from moesaic.train.task import Weighed

R = TypeVar("R")


@dataclass(frozen=True)
class Plan:
    """One contender before it is trained: its kind and design, its examples by domain, its training settings.

    `layers`: the layers that it changes, as a recipe writes them; `frozen`: whether its head, if it has one, stays as
    it is drawn.
    """

    kind: AnyKind
    design: Any
    layers: str | None
    train: dict[str, list[Example]]
    validation: dict[str, list[Example]]
    settings: Train
    frozen: bool = False

    def begin(self, body: Decoder | Encoder, seed: int) -> Started[Any]:
        """Put the contender's fresh expert into a base of its own: the same at every call."""
        return self.kind.begin(body, self.design, self.layers, Generator().manual_seed(seed))


@dataclass(frozen=True)
class Objective:
    """The arguments of one training: see `train.loop.fit`."""

    parameters: Mapping[str, nn.Parameter]
    batch: Callable[[int], Any]
    loss: Callable[[Any], tuple[Tensor, int]]
    validate: Callable[[], float]
    names: Callable[[int], list[str]]


@dataclass(frozen=True)
class Made:
    """The result of a training: an expert, its head if it classifies, its figures on validation, and those in words."""

    expert: Any
    head: Head | None
    metrics: dict[str, float]
    told: str


@runtime_checkable
class Trainer(Protocol):
    """Trains one contender: every training starts from the same weights and sees the same order of rows."""

    def rows(self) -> dict[str, int]:
        """Count the rows that the contender learns from and is chosen by, and those that were cut."""

    def objective(self, plan: Plan) -> Objective:
        """Prepare one training from its beginning."""

    def made(self, plan: Plan, state: Mapping[str, Tensor], best: float) -> Made:
        """Turn the parameters of a training into an expert."""

    def logged(self, row: dict[str, Any]) -> dict[str, Any]:
        """Turn a step of the loop into a line of its log."""

    def outcome(self, best: float) -> float:
        """Turn the loop's best validation into the figure that manifests hold."""


@runtime_checkable
class Scorer(Protocol):
    """Asks the mixture of a run, and the contenders beside it, about the test rows."""

    def contender(self, name: str, plan: Plan | None, folder: Path | None) -> Judged:
        """Score a contender that needs no router; a control that was trained has a plan and a folder."""

    def weighted(self, weights: Float[Tensor, "n e"] | None) -> Judged:
        """Score the mixture under given decisions; None: it decides before every token."""

    def shown(self, scores: Judged) -> str:
        """Say a score in a few words."""


@dataclass(frozen=True)
class Beside:
    """Findings beside the verdict: costs that it rests on, more of each control, facts, and how long things take."""

    costs: dict[str, Cost]
    controls: dict[str, dict[str, Any]]
    facts: dict[str, Any]
    timing: dict[str, Any]


class Task(ABC, Generic[R]):
    """The rows of one run, and what encodes, trains, mixes and judges them."""

    chosen_by: ClassVar[int]
    """Rows of a domain that learning rates are chosen by, at most."""
    answers: ClassVar[bool] = False
    """Whether contenders answer rows right or wrong."""

    def __init__(self, run: RunDir, materials: Materials, models: Models):
        self.run, self.recipe, self.materials, self.models = run, run.recipe, materials, models

    @property
    def kind(self) -> AnyKind:
        """The kind that reads and joins the experts of the run."""
        return self.recipe.kind

    # --- the base

    @property
    @abstractmethod
    def foundation(self) -> Base | Backbone:
        """The base that the run is built on, for reading only."""

    @abstractmethod
    def fresh(self) -> Base | Backbone:
        """The same, loaded anew for a caller that changes it."""

    @property
    def body(self) -> Decoder | Encoder:
        """The base as a model, for reading only."""
        return self.foundation.body

    @property
    def pool(self) -> Pool:
        """The state of a row that its label is read from."""
        return self.recipe.base.pool or usual_pool(self.body)

    # --- rows

    @abstractmethod
    def encoded(self, examples: Sequence[Example], length: int, domain: str) -> list[R]:
        """The examples of a domain as rows of at most `length` tokens."""

    @cached_property
    def test_rows(self) -> dict[str, list[R]]:
        """The rows that everything is judged on, by domain; `unseen` last where the recipe names such text."""
        limit, length = self.recipe.evaluate.limit, self.recipe.train.length
        return {
            name: self.encoded(take(domain.test, limit), length, name)
            for name, domain in self.materials.domains.items()
        }

    @abstractmethod
    def prompts(self, rows: Sequence[R]) -> Prompts:
        """The prompts of rows, as a router reads them."""

    @abstractmethod
    def texts(self, rows: Sequence[R]) -> list[str]:
        """The prompts of rows, as text."""

    # --- experts

    @abstractmethod
    def trainer(self, plan: Plan) -> Trainer:
        """The trainer of a contender."""

    def identity(self, tasks: Sequence[str]) -> dict[str, Any]:
        """Everything beside texts that decides on a contender trained on these domains, for its key."""
        return {}

    def head_facts(self, plan: Plan) -> dict[str, Any]:
        """Facts about a contender's head for its manifest."""
        return {}

    @abstractmethod
    def verified(self, plan: Plan, folder: Path, refuse: Callable[[str, str, str], None]) -> dict[str, Any]:
        """Measure an expert that is read back; `refuse` where a figure is not what its manifest says."""

    # --- mixtures

    @abstractmethod
    def read_experts(self, folders: Mapping[str, Path], told: Listener) -> Mapping[str, Stored]:
        """The experts in these folders, each held against the base; oddities are reported."""

    def mixture_facts(self) -> dict[str, Any]:
        """Facts about the task for a mixture's manifest."""
        return {}

    @abstractmethod
    def require_mixture(self, folder: Path) -> None:
        """Refuse a mixture that cannot be loaded."""

    @abstractmethod
    def frozen_experts(self, folders: Mapping[str, Path]) -> Any:
        """All experts over one base, frozen, for `losses`."""

    @abstractmethod
    def losses(self, experts: Any, rows: Sequence[R]) -> Weighed:
        """The losses of rows as a function of the weights of `frozen_experts`."""

    # --- evaluation

    @abstractmethod
    def scorer(self) -> Scorer:
        """The scorer of the run's mixture."""

    def nobody(self) -> Judged | None:
        """The scores of rows that nobody answers; None: the base answers them."""
        return None

    @abstractmethod
    def beside(
        self, scores: dict[str, Judged], weights: Float[Tensor, "n e"], trained: Mapping[str, tuple[Plan, Path]]
    ) -> Beside:
        """Findings beside the verdict. `weights`: the router's decisions; `trained`: controls that were trained."""


def even(domains: Sequence[Sequence[Any]]) -> list[Any]:
    """All rows, small domains repeated, so that a joint training sees as many rows of every domain."""
    most = max(len(rows) for rows in domains)
    return [rows[i % len(rows)] for rows in domains for i in range(most)]


def refused(folder: Path, name: str) -> Callable[[str, str, str], None]:
    """A function that refuses an expert whose figures are not what its manifest says."""

    def refuse(field: str, expected: str, got: str) -> None:
        raise CompatibilityError(
            "the expert does not do what its manifest says",
            path=folder,
            field=field,
            expected=expected,
            got=got,
            hint=f"remove this folder and train it again: moesaic train-expert RECIPE --expert {name}",
        )

    return refuse


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that ask for gradients, by name."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def ones(rows: int) -> Tensor:
    """The decisions that give all rows to the only expert."""
    return torch.ones(rows, 1)
