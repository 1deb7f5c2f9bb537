"""What the kinds of site `linear` share: adapters beside the matrices of a shared base.

Knows nothing about how an adapter multiplies its numbers out.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from jaxtyping import Float
from pydantic import Field
from torch import Generator, Tensor

from moesaic.adapters import Adapter, Design, LoRA, LowRankLinear, attach
from moesaic.adapters.lora import linears, targeted, targets_in
from moesaic.adapters.slots import slots_of
from moesaic.artefacts.adapter import FILES, StoredExpert, load_expert, save_expert
from moesaic.artefacts.backbone import Backbone
from moesaic.artefacts.base import Base, load_base
from moesaic.artefacts.router import StoredRouter
from moesaic.artefacts.tokenizer_check import spoken_otherwise, tokenizer_beside
from moesaic.errors import CompatibilityError, RecipeError
from moesaic.interop.outline import Outline, Shape
from moesaic.kinds.averages import average
from moesaic.kinds.difference import difference, require_variant
from moesaic.kinds.gates import alone
from moesaic.kinds.kind import Begun, Footprint, Joined, Kind, Listener, Lone, Mixing, Terms
from moesaic.kinds.parameters import asleep, count_parameters, num_parameters
from moesaic.model.classifier import Head
from moesaic.model.decoder import Decoder
from moesaic.model.encoder import Encoder
from moesaic.model.mixture import AdapterMixture
from moesaic.sections.expert import ALL_TARGETS, TRAINED, Expert, Sweep, Target, Targets
from moesaic.sections.layers import layer_range
from moesaic.sections.section import Count, Distinct, Positive

RANK = 16
"""Rank of the LoRA that a plan counts for a fine-tuned model."""
OUTSIDE_LIMIT = 0.5
"""The largest share of what fine-tuning changed that may lie where no LoRA expert can hold it."""


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
    """Whether the head of a classifying expert learns, or stays as it is drawn."""
    sweep: AdapterSweep | None = None
    """Values to try; the best on validation is kept."""

    def idle(self) -> dict[str, str]:
        """Keys that a trained expert's folder decides, a head that nothing reads, and keys that a sweep replaces."""
        idle = super().idle()
        if self.path:
            idle |= dict.fromkeys(self.shape_keys(), TRAINED)
        if not self.labelled:
            idle["head"] = "only experts that classify have a head"
        elif self.path:
            idle["head"] = "an expert with path is trained already: its folder holds its head"
        for key, values in self.sweep or ():
            if values and key != "lr":
                idle[key] = f"sweep.{key} stands in its place"
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
    """A kind of site `linear`: for everything but training an adapter is its pairs."""

    site = "linear"
    changes = "adapts"
    classifies = True
    routes_by_weights = True
    always_held = True
    files = FILES

    # --- trained here

    @abstractmethod
    def design(self, spec: Expert) -> AnyDesign: ...

    def begin(self, body: Decoder | Encoder, design: AnyDesign, layers: str | None, generator: Generator) -> Begun[Own]:
        body.requires_grad_(False)
        fresh: Any = design.fresh(body, layer_range(layers, body.config.num_layers), generator)
        fresh.adapt(body)
        return Begun(alone, lambda: fresh.detach(body))

    def save(
        self, folder: Path, value: Own, base: Base | Backbone, facts: dict[str, Any], head: Head | None = None
    ) -> None:
        save_expert(folder, value, base.fingerprint, facts, head)

    def lone(self, folder: Path, base: Base, design: AnyDesign) -> Lone[StoredExpert]:
        stored = load_expert(folder, base.fingerprint)
        attach(base.decoder, [stored.lora])
        return Lone(base.decoder, alone, stored)

    def idle_part(self, lone: Lone[StoredExpert], base: Decoder) -> str | None:
        """A matrix beside which only zeros stand."""
        return next((path for path, slot in slots_of(lone.decoder, LowRankLinear).items() if not slot.b.any()), None)

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

    def average(self, decoder: Decoder, experts: Sequence[StoredExpert]) -> Decoder:
        return average(decoder, [one.lora for one in experts])

    # --- counted

    def counts(
        self, base: Decoder, mixture: AdapterMixture, experts: Sequence[StoredExpert], weights: Float[Tensor, "n e"]
    ) -> dict[str, int]:
        return count_parameters(mixture, [one.adapter for one in experts], weights)

    def cost(self, base: Decoder, stored: StoredExpert) -> int:
        return num_parameters(base) - asleep(base) + stored.adapter.num_parameters

    # --- planned

    def planned(self, base: Outline, spec: Any) -> Footprint:
        return Footprint(pairs=_pairs(base, spec.rank, list(spec.targets), spec.layers))

    def of_model(self, model: Outline, base: Outline, held: bool = False) -> Footprint:
        """The LoRA beside every linear that `adopt` makes of a fine-tuned model."""
        everywhere = targets_in(path for path in linears(base.module) if path != "lm_head")
        return Footprint(pairs=_pairs(base, RANK, everywhere, None))

    def plan_notes(self, adapters_only: bool) -> list[str]:
        note = f"a whole model becomes a LoRA of rank {RANK} beside every linear, as `adopt` makes it"
        return [] if adapters_only else [note]

    # --- adopted

    def adopt(self, base: Base, path: Path, tuned: bool, terms: Terms, told: Listener, name: str) -> Joined[Any]:
        if tuned:
            lora, facts = _difference(base, path, terms.rank, told, name)
            return Joined(lora, None, facts)
        stored = load_expert(path, base.fingerprint, base.decoder)
        for odd in self.warnings(path, base.tokenizer):
            told.warn(f"{name}: {odd}")
        made = "expert" if stored.manifest else "PEFT adapter"
        facts = {"from": made, "verified": bool(stored.manifest), "rank": stored.lora.rank}
        return Joined(stored.lora, path, {**facts, "parameters": stored.lora.num_parameters})


def numbers_of(designs: Sequence[Design], layers: Sequence[str | None], body: Decoder | Encoder) -> int:
    """How many numbers such adapters have together beside a body, each in its own layers."""
    depth = body.config.num_layers
    return sum(
        design.num_parameters(body, layer_range(own, depth)) for design, own in zip(designs, layers, strict=True)
    )


def _pairs(base: Outline, rank: int, targets: list[str], layers: str | None) -> dict[str, Shape]:
    """The pairs of an adapter of this rank beside these linears."""
    found = targeted(base.module, targets, layer_range(layers, base.config.num_layers))
    return {path: (rank, linear.in_features, linear.out_features) for path, linear in found.items()}


def _difference(base: Base, path: Path, rank: int, told: Listener, name: str) -> tuple[LoRA, dict[str, Any]]:
    """A fine-tuned model's difference to the base as an expert; its loss is reported, and too much is refused."""
    if rank < 1:
        raise RecipeError("no rank", field="rank", expected=">= 1", got=rank)
    tuned = load_base(path)
    require_variant(base, tuned.decoder.config, tuned.tokenizer, path)
    for odd in spoken_otherwise(base.tokenizer, tuned.tokenizer):
        told.warn(f"{name}: {odd}")
    try:
        found = difference(base.decoder, tuned.decoder, rank)
    except CompatibilityError as error:
        error.path = path
        raise
    far = ", ".join(f"{part} by {moved:.2%}" for part, moved in sorted(found.changed.items(), key=lambda x: -x[1])[:3])
    if found.outside > OUTSIDE_LIMIT:
        hint = "fine-tune only linears, or train an adapter"
        raise CompatibilityError(
            "most of what fine-tuning changed lies outside the linears",
            path=path,
            expected=f"at most {OUTSIDE_LIMIT:.0%} of the change's energy",
            got=f"{found.outside:.1%}: {far}",
            hint=hint,
        )
    if found.changed:
        more = f" and {len(found.changed) - 3} more" if len(found.changed) > 3 else ""
        told.warn(f"{name}: {found.outside:.1%} of the change is lost, as it lies outside the linears: {far}{more}")
    told.note(f"{name}: rank {rank} keeps {found.kept:.1%} of what changed in the linears")
    facts = {"from": "fine-tuned model", "verified": True, "rank": rank, "kept": found.kept, "outside": found.outside}
    return found.lora, {**facts, "parameters": found.lora.num_parameters}
