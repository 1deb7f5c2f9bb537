"""A task: the form of a run's rows, and everything that depends on it.

Two tasks exist, one for texts and one for rows with labels. Knows nothing about which parts a run has.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Generator, Tensor, nn

from moesaic.artefacts.backbone import Backbone
from moesaic.artefacts.base import Base
from moesaic.data.batches import Joined
from moesaic.data.rows import Example
from moesaic.data.splits import take
from moesaic.evaluate.ruling import Cost
from moesaic.evaluate.statistics import Judged
from moesaic.hardware import Compute
from moesaic.kinds import AnyKind
from moesaic.kinds.gates import Weights
from moesaic.kinds.kind import Body, Facts, Started, Stored
from moesaic.model.classifier import Head, Pool, usual_pool
from moesaic.model.features import Prompts
from moesaic.model.mixture import Routed
from moesaic.runs.directory import RunDir
from moesaic.sections.training import Train
from moesaic.tasks.materials import Materials
from moesaic.tasks.models import Models
from moesaic.train.mixture_loss import Weighed

R = TypeVar("R")


@dataclass(frozen=True)
class Plan:
    """One contender before it is trained: its kind and design, its examples by domain, its training settings.

    `layers`: the layers that it changes, as a recipe writes them; `frozen`: its head, if it has one, is not trained.
    """

    kind: AnyKind
    design: Any
    layers: str | None
    train: Mapping[str, Sequence[Example]]
    validation: Mapping[str, list[Example]]
    settings: Train
    frozen: bool = False

    def begin(self, body: Body, seed: int) -> Started[Any]:
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
    scaled: bool = False
    """Multiply the loss before the backward pass, as gradients of float16 vanish."""


@dataclass(frozen=True)
class Made:
    """The result of a training: an expert, its head if it classifies, its figures on validation, and those in words."""

    expert: Any
    head: Head | None
    metrics: dict[str, float]
    summary: str


class Trainer(ABC):
    """Trains one contender: every training starts from the same weights and sees the same order of rows."""

    @abstractmethod
    def rows(self) -> dict[str, Any]:
        """Count the rows for training and for validation, and those that were truncated; see `cut_of`."""

    @abstractmethod
    def cuts(self) -> str | None:
        """A sentence about the training rows that were cut; None where none was."""

    @abstractmethod
    def spelled(self, text: str) -> str | None:
        """A special token that a text spells, which is read as text; None without any."""

    @abstractmethod
    def objective(self, plan: Plan) -> Objective:
        """Prepare one training from its beginning."""

    @abstractmethod
    def made(self, plan: Plan, state: Mapping[str, Tensor], best: float) -> Made:
        """Turn the parameters of a training into an expert."""

    @abstractmethod
    def values(self, plan: Plan, folder: Path) -> Mapping[str, Tensor]:
        """The values of a published expert under the names of the parameters that its training has."""

    def continued(self, plan: Plan, values: Mapping[str, Tensor]) -> Objective:
        """Prepare one training from given values of its parameters."""
        objective = self.objective(plan)
        with torch.no_grad():
            for name, parameter in objective.parameters.items():
                parameter.copy_(values[name])
        return objective

    def validated(self, plan: Plan, values: Mapping[str, Tensor]) -> float:
        """Validate parameters, as the loop does."""
        return self.continued(plan, values).validate()

    def logged(self, row: dict[str, Any]) -> dict[str, Any]:
        """Turn a step of the loop into a line of its log."""
        return row

    def outcome(self, best: float) -> float:
        """Turn the loop's best validation into the figure that manifests hold."""
        return best


@dataclass(frozen=True)
class Findings:
    """Findings beside the verdict: costs that it rests on, more figures of each control, facts, and speeds."""

    costs: dict[str, Cost]
    controls: dict[str, dict[str, Any]]
    facts: dict[str, Any]
    timing: dict[str, Any]


Watch = Callable[[str, Sequence[Example]], Iterable[Example]]
"""(domain, its examples) -> the same examples; may report how many are encoded."""


def unwatched(domain: str, examples: Sequence[Example]) -> Iterable[Example]:
    return examples


class Task(ABC, Generic[R]):
    """The rows of one run, and everything that encodes, trains, mixes and judges them."""

    chosen_by: ClassVar[int]
    """The largest number of a domain's rows that learning rates are chosen by."""
    answers: ClassVar[bool] = False
    """True where contenders answer rows right or wrong."""

    def __init__(self, run: RunDir, materials: Materials, models: Models):
        self.run, self.recipe, self.materials, self.models = run, run.recipe, materials, models
        self.watch: Watch = unwatched

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
    def fresh(self, compute: Compute | None = None) -> Base | Backbone:
        """The base, loaded anew for a caller that changes it; `compute`: its device and type (default: the run's)."""

    @property
    def compute(self) -> Compute:
        """The device and the type of the run."""
        return self.models.compute

    def taught(self, kind: AnyKind) -> Compute:
        """The type of a base that such experts are trained in: float32 where the training changes its weights."""
        return self.compute.trained if kind.trains_weights else self.compute

    def products(self, kind: AnyKind) -> Compute:
        """The type that autocast lowers the products of such a training to: the run's where `taught` is float32."""
        return self.compute if kind.trains_weights else self.compute.trained

    @property
    def body(self) -> Body:
        """The base as a model, for reading only."""
        return self.foundation.body

    @property
    def pool(self) -> Pool:
        """The state of a row that its label is read from."""
        return self.recipe.base.pool or usual_pool(self.body)

    # --- rows

    @contextmanager
    def watched(self, watch: Watch) -> Iterator[None]:
        """Pass the examples of every domain through `watch` while they are encoded in the `with` block."""
        self.watch = watch
        try:
            yield
        finally:
            self.watch = unwatched

    @abstractmethod
    def encoded(self, examples: Sequence[Example], length: int, domain: str) -> list[R]:
        """Encode the examples of a domain as rows of at most `length` tokens."""

    @cached_property
    def test_rows(self) -> dict[str, list[R]]:
        """The rows that everything is judged on, by domain; `unseen` last where the recipe names such text."""
        limit, length = self.recipe.evaluate.limit, self.recipe.train.length
        domains = self.materials.domains.items()
        return {name: self.encoded(take(domain.test, limit), length, name) for name, domain in domains}

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

    def identity(self, tasks: Sequence[str]) -> Facts:
        """Everything that decides on a contender trained on these domains, except the texts, for its key."""
        return {}

    def head_facts(self, plan: Plan) -> Facts:
        """Facts about a contender's head for its manifest."""
        return {}

    @abstractmethod
    def verified(self, plan: Plan, folder: Path, refuse: Callable[[str, str, str], None]) -> dict[str, Any]:
        """Measure an expert that is read back, and call `refuse` where a figure differs from its manifest's."""

    # --- mixtures

    @abstractmethod
    def read_experts(self, folders: Mapping[str, Path]) -> Mapping[str, Stored]:
        """Read the experts in these folders and check each against the base."""

    def warnings(self, folder: Path) -> list[str]:
        """Warnings about the expert in a folder."""
        return []

    def mixture_facts(self) -> Facts:
        """Facts about the task for a mixture's manifest."""
        return {}

    @property
    @abstractmethod
    def mixture(self) -> Any:
        """The run's mixture, read from its folder once; raises for one that cannot be loaded."""

    @abstractmethod
    def frozen_experts(self, folders: Mapping[str, Path]) -> Any:
        """All experts over one base, frozen, for `losses`."""

    @abstractmethod
    def losses(self, experts: Any, rows: Sequence[R]) -> Weighed:
        """The losses of rows as a function of the weights of `frozen_experts`."""

    # --- evaluation

    @abstractmethod
    def score(self, name: str, plan: Plan | None, folder: Path | None) -> Judged:
        """Score a contender that needs no router on the test rows; a trained control has a plan and a folder."""

    @abstractmethod
    def score_weights(self, weights: Weights | None) -> Judged:
        """Score the mixture under given decisions on the test rows; None: it decides before every token."""

    def score_model(self, mixture: Routed) -> Judged:
        """Score a mixture that decides before every token on the test rows."""
        raise NotImplementedError("no such mixture answers rows with labels")

    @abstractmethod
    def shown(self, scores: Judged) -> str:
        """A score in a few words."""

    @property
    def definitions(self) -> dict[str, dict[str, str]]:
        """The definitions of figures that need one, by domain."""
        return {}

    def unanswered(self) -> Judged | None:
        """The scores of rows without an answer; None: the base answers them."""
        return None

    @abstractmethod
    def findings(
        self, scores: dict[str, Judged], weights: Weights, trained: Mapping[str, tuple[Plan, Path]]
    ) -> Findings:
        """Findings beside the verdict. `weights`: the router's decisions; `trained`: controls that were trained."""


def even(domains: Sequence[Sequence[Any]]) -> Joined[Any]:
    """Repeat the rows of small domains, so that a joint training sees as many rows of every domain."""
    return Joined(domains, evenly=True)


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require gradients, by name."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
