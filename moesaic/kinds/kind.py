"""One kind of expert as one object: its section in a recipe; how it is made, saved, read, joined, averaged and counted.

Knows nothing about rows, run directories or terminals: a kind receives a base, a design and a seed.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar, runtime_checkable

import torch
from torch import Generator

from moesaic.artefacts.backbone import Backbone
from moesaic.artefacts.base import Base
from moesaic.artefacts.router import StoredRouter
from moesaic.artefacts.stored import Stored
from moesaic.errors import RecipeError
from moesaic.files import MANIFEST, gather
from moesaic.interop.outline import Config, Outline, Shape
from moesaic.kinds.compatibility import Difference
from moesaic.kinds.gates import GatesFor, Weights
from moesaic.model.classifier import Head
from moesaic.model.decoder import Decoder
from moesaic.model.encoder import Encoder
from moesaic.model.mixture import Routed
from moesaic.model.source import HELD, ExpertSource
from moesaic.ops.ensemble import Combine
from moesaic.residency.fetching import Fetchable, Whole
from moesaic.routing import Gates
from moesaic.sections.expert import Expert
from moesaic.tokenizer import Tokenizer

D = TypeVar("D")
"""A design: an expert before it has values."""
V = TypeVar("V")
"""A value: an expert apart from its folder."""
S = TypeVar("S", bound=Stored)

Body = Decoder | Encoder
Facts = dict[str, Any]
"""Entries of a manifest."""


@dataclass(frozen=True)
class Started(Generic[V]):
    """An expert in a base, ready to be trained: the gates to call the base with, and how to take the expert out."""

    gates: GatesFor
    take: Callable[[], V]


@dataclass(frozen=True)
class Reloaded(Generic[S]):
    """An expert that was read back into a base of its own, as it was trained."""

    decoder: Decoder
    gates: GatesFor
    stored: S


@dataclass(frozen=True)
class Mixing:
    """How experts are mixed. `level`: a decision for each sequence or each token; `combine`: how distributions become
    one; `disabled`: experts that are never chosen; `source`: the holder of the experts.
    """

    level: str = "sequence"
    combine: Combine = "mixture"
    disabled: Collection[str] = ()
    source: ExpertSource = HELD


@dataclass(frozen=True)
class Terms:
    """Terms on which a fine-tuned model joins: the rank of a LoRA, and whether to ignore what an ffn cannot hold."""

    rank: int = 16
    ignore_rest: bool = False


@dataclass(frozen=True)
class Joined(Generic[V]):
    """An expert that joins a mixture. `value`: None for a whole model, which is its folder; `folder`: None for an
    expert that was made here and is still to be written; `facts`: for the mixture's manifest.
    """

    value: V | None
    folder: Path | None
    facts: Facts


@dataclass(frozen=True)
class Footprint:
    """The memory that an expert adds. `pairs`: of an adapter; `counts`: all other values by stored type.

    `config`: of an expert with a cache of its own; None for an expert that uses the base's cache.
    """

    pairs: Mapping[str, Shape] | None = None
    counts: Mapping[torch.dtype, int] = field(default_factory=dict)
    config: Config | None = None

    @classmethod
    def of(cls, model: Outline, kept: Collection[str], config: Config | None = None) -> "Footprint":
        counts: dict[torch.dtype, int] = {}
        for name in kept:
            dtype = model.stored.get(name, torch.bfloat16)
            counts[dtype] = counts.get(dtype, 0) + math.prod(model.shapes[name])
        return cls(counts=counts, config=config)


@runtime_checkable
class Listener(Protocol):
    """Receives notes and warnings while experts are read and made."""

    def note(self, text: str) -> None:
        """Report something worth a line: a skipped stage, dropped rows, the path of a file."""

    def warn(self, text: str) -> None:
        """Report a problem that the work survives and that the user should see."""


class Kind(ABC, Generic[D, V, S]):
    """A kind of expert. Kinds of one site can be mixed with each other and are read alike."""

    word: ClassVar[str]
    """The kind as recipes and manifests write it."""
    site: ClassVar[str]
    """The place in a model where experts of this kind meet."""
    section: ClassVar[type[Expert]]
    """The keys of such an expert in a recipe."""
    changes: ClassVar[str] = "changes"
    """The verb for what such an expert does to a layer."""
    levels: ClassVar[tuple[str, ...]] = ("sequence",)
    """Levels at which a router can decide between such experts: each sequence, or each token."""
    combinations: ClassVar[tuple[Combine, ...]] = ("mixture",)
    """Ways in which next-token distributions of several experts can become one."""
    classifies: ClassVar[bool] = False
    """True where such experts can have a head and answer rows with labels."""
    adopts: ClassVar[bool] = True
    """True where `adopt` knows the kind by its word."""
    routes_by_weights: ClassVar[bool] = False
    """True where a router can distinguish such experts by their weights alone."""
    trains_base: ClassVar[bool] = False
    """True where such an expert begins as the base, all of which is trained."""
    shares_trunk: ClassVar[bool] = True
    """True where such experts share the base's blocks, so that a router can read states inside them."""
    always_held: ClassVar[bool] = False
    """True where such experts are so small that a budget holds all of them."""
    files: ClassVar[tuple[str, ...]] = ()
    """The files that the folder of such an expert may hold beside its manifest."""
    no_wider: ClassVar[str | None] = None
    """The reason why this kind has no control `joint_wide`; None: it has one."""
    plan_note: ClassVar[str | None] = None
    """An assumption of a plan in which models become such experts."""

    # --- trained here

    @abstractmethod
    def design(self, spec: Expert) -> D:
        """An expert before it has values, as its section in a recipe describes it."""

    @abstractmethod
    def joint(self, designs: Sequence[D]) -> D:
        """The control `joint`: one expert in the shape of all of these."""

    def wide(self, designs: Sequence[D], layers: Sequence[str | None], body: Body, own: str | None) -> D:
        """The control `joint_wide`, of no fewer parameters than all of these. `own`: the layers of the control."""
        raise NotImplementedError(self.no_wider)

    @abstractmethod
    def begin(self, body: Body, design: D, layers: str | None, generator: Generator) -> Started[V]:
        """Put a fresh expert into a base of its own, the same at every call; only the expert requires gradients."""

    def resume(self, body: Body, stored: S, design: D) -> None:
        """Put a trained expert into a base of its own, as `begin` does with a fresh one, to be trained further."""
        hint = "train it with more steps instead"
        raise RecipeError(f"{self.word} experts are not trained continuously", field="experts", hint=hint)

    def facts(self, design: D) -> Facts:
        """Facts about a design for the expert's manifest."""
        return {}

    @abstractmethod
    def save(self, folder: Path, value: V, base: Base | Backbone, facts: Facts, head: Head | None = None) -> None:
        """Write an expert, with its manifest, into an empty folder."""

    @abstractmethod
    def reload(self, folder: Path, base: Base, design: D) -> Reloaded[S]:
        """Read an expert back into a base of its own, as it was trained."""

    @abstractmethod
    def idle_part(self, expert: Reloaded[S], base: Decoder) -> str | None:
        """A part of an expert that changes nothing; None where every part changes something."""

    # --- read

    @abstractmethod
    def holds(self, folder: Path) -> bool:
        """Tell by the names of the files whether a folder holds an expert of this kind."""

    @abstractmethod
    def read(self, folder: Path, base: Base) -> S:
        """Read an expert and check it against its base."""

    def open(self, folder: Path, base: Base, index: int) -> tuple[Fetchable, S]:
        """Read all of an expert but its values, which are fetched later into this index of the mixture.

        Experts of a kind that is `always_held` have nothing to fetch: they are read whole.
        """
        return Whole(), self.read(folder, base)

    def write(self, source: Path, target: Path, base: Path) -> None:
        """Write the expert of a folder into a mixture's, beside the folder of the mixture's base."""
        gather({file: source / file for file in (*self.files, MANIFEST)}, target)

    def value(self, stored: S) -> V | None:
        """An expert apart from its folder; None for a kind whose experts are their folders."""
        return None

    def fingerprint(self, stored: S, folder: Path) -> str:
        """The hash of an expert's values."""
        assert stored.fingerprint is not None
        return stored.fingerprint

    def version(self, folder: Path, base: Callable[[], Base]) -> str:
        """The fingerprint of an expert from its folder; the base is loaded only where the kind needs it."""
        return self.fingerprint(self.read(folder, base()), folder)

    def warnings(self, folder: Path, tokenizer: Tokenizer) -> list[str]:
        """Warnings about differences between the text that an expert learned from and the base's."""
        return []

    # --- joined

    def attach(self, base: Decoder, experts: Sequence[S]) -> None:
        """Put experts, in this order, into the slots of a base."""
        raise NotImplementedError(f"{self.word} experts fill no slot")

    @abstractmethod
    def join(self, base: Base, experts: Sequence[S], router: StoredRouter, mixing: Mixing) -> Routed:
        """Make a mixture of experts, in the order of the router's names. The base's decoder becomes the mixture's."""

    def held(self, base: Decoder, stored: S, index: int) -> S:
        """An expert by what a mixture's base holds of it, so that the files' tensors can be released."""
        return stored

    @abstractmethod
    def average(self, decoder: Decoder, experts: Sequence[S]) -> Decoder:
        """Turn `decoder`, a plain base, into one dense model, in place: the mean of all experts."""

    def not_averaged(self, base: Path, experts: Sequence[Path]) -> str | None:
        """The reason why the experts of these folders have no average; None: they have one."""
        return None

    # --- counted

    @abstractmethod
    def counts(self, base: Decoder, mixture: Any, experts: Sequence[S], weights: Weights) -> dict[str, int]:
        """Parameters of a mixture over a plain `base`, by part, and those that answer a row; see `parameters`."""

    @abstractmethod
    def cost(self, base: Decoder, stored: S) -> int:
        """Parameters that answer a row of one expert alone."""

    def first(self, mixture: Any, experts: Sequence[S]) -> tuple[Decoder, Gates | None]:
        """The decoder and the gates by which the first expert answers one row alone."""
        return mixture.decoder, Gates.one(0, 1, len(experts), mixture.decoder.norm.weight)

    # --- planned

    @abstractmethod
    def planned(self, base: Outline, spec: Expert) -> Footprint:
        """The memory of an expert that a recipe trains."""

    def of_model(self, model: Outline, base: Outline, held: bool = False) -> Footprint:
        """The memory of a fine-tuned model as an expert. `held`: the model is the base itself."""
        raise RecipeError(f"a model does not become {self.word} experts", path=model.name, field="site")

    def beside(self, base: Outline, folder: Path) -> tuple[Footprint, list[Difference]]:
        """The memory of the expert in a folder that this kind `holds`, and where it does not fit the base."""
        raise NotImplementedError(f"no folder is known to hold {self.word} experts only")

    def in_mixture(self, base: Outline, folder: Path) -> tuple[Footprint, list[Difference]]:
        """The memory of the expert in a mixture's folder, and where it does not fit the base."""
        return self.beside(base, folder)

    def require_composable(self, base: Outline) -> None:
        """Refuse a base that such experts do not fit."""

    # --- adopted

    def adopt(self, base: Base, path: Path, tuned: bool, terms: Terms, progress: Listener, name: str) -> Joined[V]:
        """Read a folder as an expert of this kind and check it against the base. `tuned`: it is a fine-tuned model."""
        raise RecipeError(f"{self.word} experts are not adopted", path=path, field=name)

    def extracted(self, folder: Path) -> bool:
        """Tell whether the expert is only a part of the model in a folder, and has to be extracted from it."""
        return False

    def terms(self, spec: Expert) -> Terms:
        """The terms on which a recipe takes an expert out of a fine-tuned model."""
        return Terms()

    def of_base(self, base: Base) -> V:
        """The expert that computes what the base does."""
        raise NotImplementedError(f"{self.word} experts are not extracted")

    def extract(self, base: Base, folder: Path, terms: Terms, progress: Listener, name: str) -> tuple[V, Facts]:
        """Take an expert out of a fine-tuned model, with facts for its manifest."""
        raise NotImplementedError(f"{self.word} experts are not extracted")
