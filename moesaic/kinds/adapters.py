"""Site `linear`: adapters beside the matrices of a shared base, whatever their form.

Knows nothing about how an adapter multiplies its numbers out.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field
from torch import Generator, Tensor

from moesaic.adapters import Adapter, Design, LoRA, LowRankLinear, attach, merge
from moesaic.adapters.lora import adaptable, name_of, targeted
from moesaic.adapters.slots import slots_of
from moesaic.adapters.sparse_experts import WHOLE, Stack
from moesaic.artefacts.adapter import FILES, StoredExpert, load_expert, save_expert
from moesaic.artefacts.backbone import Backbone
from moesaic.artefacts.base import Base, load_base
from moesaic.artefacts.router import StoredRouter
from moesaic.artefacts.tokenizer_check import spoken_otherwise, tokenizer_beside
from moesaic.errors import CompatibilityError, RecipeError
from moesaic.interop.outline import Outline, Shape
from moesaic.kinds.difference import difference, farthest, require_variant
from moesaic.kinds.gates import Weights, alone, beside
from moesaic.kinds.kind import Body, Facts, Footprint, Joined, Kind, Listener, Mixing, Reloaded, Started, Terms
from moesaic.kinds.parameters import asleep, awake, count_parameters, num_parameters
from moesaic.model.classifier import Head
from moesaic.model.decoder import Decoder
from moesaic.model.mixture import AdapterMixture
from moesaic.sections.expert import ALL_TARGETS, TRAINED, Expert, Sweep, Target, Targets
from moesaic.sections.layers import layer_range
from moesaic.sections.section import Count, Distinct, Positive

RANK = 16
"""Rank of the LoRA that a plan counts for a fine-tuned model."""
OUTSIDE_LIMIT = 0.5
"""The largest share of the change by fine-tuning that may lie outside the linears, where a LoRA cannot hold it."""


class AdapterSweep(Sweep):
    """Values to try, in every combination, in place of an expert's own; one setting at least."""

    rank: Annotated[list[Count], Field(min_length=1), Distinct] | None = None
    """Ranks."""
    alpha: Annotated[list[Positive], Field(min_length=1), Distinct] | None = None
    """Values of alpha."""
    targets: Annotated[list[Targets], Field(min_length=1), Distinct] | None = None
    """Sets of linear layers."""


class AdapterSection(Expert):
    """An adapter beside linear layers of the base."""

    rank: Count = 8
    """Rank of the adapter."""
    targets: Annotated[list[Target], Distinct] = Field(default=ALL_TARGETS, min_length=1)
    """Linear layers to adapt."""
    head: Literal["trained", "frozen"] = "trained"
    """Training of a classifying expert's head: trained, or frozen as it was drawn."""
    sweep: AdapterSweep | None = None
    """Values to try; the best on validation is kept."""

    def idle(self) -> dict[str, str]:
        """Name the keys that a folder decides, the head where nothing reads it, and the keys that a sweep replaces."""
        idle = super().idle()
        if self.path:
            idle |= dict.fromkeys(self.shape_keys(), TRAINED)
        if not self.labelled:
            idle["head"] = "only experts that classify have a head"
        elif self.path:
            idle["head"] = "an expert with path is trained already: its folder holds its head"
        for key, values in self.sweep or ():
            if values and key != "lr":
                idle[key] = f"sweep.{key} replaces it"
        return idle

    @property
    @abstractmethod
    def scale(self) -> float:
        """Factor of the adapter's product."""

    @property
    def largest(self) -> "AdapterSection":
        return max(self.trials, key=lambda trial: trial.rank)

    @property
    def frozen(self) -> bool:
        return self.head == "frozen"

    def shape_keys(self) -> tuple[str, ...]:
        """The keys that a trained expert's folder decides."""
        return ("rank", "alpha", "targets")


AnyDesign = TypeVar("AnyDesign", bound=Design)
Own = TypeVar("Own", bound=Adapter)


class AdapterKind(Kind[AnyDesign, Own, StoredExpert]):
    """A kind of site `linear`: everything but training uses an adapter by its pairs."""

    site = "linear"
    changes = "adapts"
    classifies = True
    routes_by_weights = True
    always_held = True
    files = FILES
    plan_note = f"a whole model becomes a LoRA of rank {RANK} beside every linear, as `adopt` makes it"

    # --- trained here

    @abstractmethod
    def design(self, spec: Expert) -> AnyDesign: ...

    def begin(self, body: Body, design: AnyDesign, layers: str | None, generator: Generator) -> Started[Own]:
        body.requires_grad_(False)
        fresh: Any = design.fresh(body, layer_range(layers, body.config.num_layers), generator)
        fresh.adapt(body)
        return Started(beside(body, alone), lambda: fresh.detach(body))

    def resume(self, body: Body, stored: StoredExpert, design: AnyDesign) -> None:
        body.requires_grad_(False)
        stored.adapter.adapt(body)

    def save(self, folder: Path, value: Own, base: Base | Backbone, facts: Facts, head: Head | None = None) -> None:
        save_expert(folder, value, base.fingerprint, facts, head)

    def reload(self, folder: Path, base: Base, design: AnyDesign) -> Reloaded[StoredExpert]:
        stored = load_expert(folder, base.fingerprint)
        attach(base.decoder, [stored.lora])
        return Reloaded(base.decoder, beside(base.decoder, alone), stored)

    def idle_part(self, expert: Reloaded[StoredExpert], base: Decoder) -> str | None:
        """The first matrix whose pair holds only zeros."""
        linears, stacks = slots_of(expert.decoder, LowRankLinear), slots_of(expert.decoder, Stack)
        slots: dict[str, LowRankLinear | Stack] = {**linears, **stacks}
        return next((path for path, slot in slots.items() if not slot.b.any()), None)

    # --- read

    def read(self, folder: Path, base: Base) -> StoredExpert:
        return load_expert(folder, base.fingerprint, base.decoder, mapped=True)

    def value(self, stored: StoredExpert) -> Any:
        return stored.lora

    def version(self, folder: Path, base: Callable[[], Base]) -> str:
        return load_expert(folder).fingerprint

    def warnings(self, folder: Path, tokenizer: Any) -> list[str]:
        return tokenizer_beside(folder, tokenizer)

    # --- joined

    def attach(self, base: Decoder, experts: Sequence[StoredExpert]) -> None:
        attach(base, [one.lora for one in experts])

    def join(self, base: Base, experts: Sequence[StoredExpert], router: StoredRouter, mixing: Mixing) -> AdapterMixture:
        lowest = min(layer for one in experts for layer in one.lora.layers)
        self.attach(base.decoder, experts)
        return AdapterMixture(base.decoder, router.over(base.decoder, mixing.disabled), lowest, mixing.source)

    def held(self, base: Decoder, stored: StoredExpert, index: int) -> StoredExpert:
        return replace(stored, adapter=stored.adapter.held_in(base, index))

    def average(self, decoder: Any, experts: Sequence[StoredExpert]) -> Any:
        """The function of a mixture with uniform weights: sum_e (1/E) B_e A_e is linear."""
        merge(decoder, [one.lora for one in experts], [1 / len(experts)] * len(experts))
        return decoder

    # --- counted

    def counts(
        self, base: Decoder, mixture: AdapterMixture, experts: Sequence[StoredExpert], weights: Weights
    ) -> dict[str, int]:
        return count_parameters(mixture, [one.adapter for one in experts], weights)

    def cost(self, base: Decoder, stored: StoredExpert) -> int:
        return num_parameters(base) - asleep(base) + awake(base, stored.adapter)

    # --- planned

    def planned(self, base: Outline, spec: Any) -> Footprint:
        return Footprint(pairs=_pairs(base, spec.rank, list(spec.targets), spec.layers))

    def of_model(self, model: Outline, base: Outline, held: bool = False) -> Footprint:
        """The memory of the LoRA beside every linear that `adopt` makes of a fine-tuned model."""
        every = adaptable(base.module)
        left_out = {path for path in every if path == "lm_head" or name_of(path) == WHOLE}
        return Footprint(pairs=_shapes(RANK, {path: every[path] for path in every if path not in left_out}))

    # --- adopted

    def adopt(self, base: Base, path: Path, tuned: bool, terms: Terms, progress: Listener, name: str) -> Joined[Any]:
        if tuned:
            lora, facts = _difference(base, path, terms.rank, progress, name)
            return Joined(lora, None, facts)
        stored = load_expert(path, base.fingerprint, base.decoder)
        for warning in self.warnings(path, base.tokenizer):
            progress.warn(f"{name}: {warning}")
        made = "expert" if stored.manifest else "PEFT adapter"
        facts = {"from": made, "verified": bool(stored.manifest), "rank": stored.lora.rank}
        return Joined(stored.lora, path, {**facts, "parameters": stored.lora.num_parameters})


def numbers_of(designs: Sequence[Design], layers: Sequence[str | None], body: Body) -> int:
    """The number of parameters of such adapters together, each in its own layers of a body."""
    depth = body.config.num_layers
    return sum(
        design.num_parameters(body, layer_range(own, depth)) for design, own in zip(designs, layers, strict=True)
    )


def _pairs(base: Outline, rank: int, targets: list[str], layers: str | None) -> dict[str, Shape]:
    return _shapes(rank, targeted(base.module, targets, layer_range(layers, base.config.num_layers)))


def _shapes(rank: int, weights: Mapping[str, Tensor]) -> dict[str, Shape]:
    return {path: (rank, *weight.shape[::-1]) for path, weight in weights.items()}


def _difference(base: Base, path: Path, rank: int, progress: Listener, name: str) -> tuple[LoRA, Facts]:
    """A fine-tuned model's difference to the base as an expert; the loss is reported, and too large a loss refused."""
    if rank < 1:
        raise RecipeError("the rank is not positive", field="rank", expected=">= 1", got=rank)
    tuned = load_base(path)
    require_variant(base, tuned.decoder.config, tuned.tokenizer, path)
    for warning in spoken_otherwise(base.tokenizer, tuned.tokenizer):
        progress.warn(f"{name}: {warning}")
    try:
        found = difference(base.decoder, tuned.decoder, rank)
    except CompatibilityError as error:
        error.path = path
        raise
    far = farthest(found.changed)
    if found.outside > OUTSIDE_LIMIT:
        what, expected = "most of the change lies outside the linears", f"at most {OUTSIDE_LIMIT:.0%} of its energy"
        hint, got = "fine-tune only linears, or train an adapter", f"{found.outside:.1%}: {far}"
        raise CompatibilityError(what, path=path, expected=expected, got=got, hint=hint)
    if found.changed:
        progress.warn(f"{name}: {found.outside:.1%} of the change is lost because it lies outside the linears: {far}")
    progress.note(f"{name}: rank {rank} keeps {found.kept:.1%} of the change in the linears")
    facts = {"from": "fine-tuned model", "verified": True, "rank": rank, "kept": found.kept, "outside": found.outside}
    return found.lora, {**facts, "parameters": found.lora.num_parameters}
