"""TT-LoRA experts: the cores of tensor trains beside the linears of a shared base.

Knows nothing about rows or routers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from moesaic.adapters import Factors, TensorTrain, TrainDesign
from moesaic.artefacts import heads, tt_lora
from moesaic.errors import RecipeError
from moesaic.interop.outline import Outline, weighed
from moesaic.kinds.adapters import AdapterKind, AdapterSection, numbers_of
from moesaic.kinds.compatibility import Difference
from moesaic.kinds.kind import Body, Footprint
from moesaic.sections.layers import layer_range
from moesaic.sections.section import CASE, Count, Positive, refusal

Side = Annotated[list[Annotated[Count, Field(le=2**20)]], Field(min_length=1, max_length=32)]
Sides = Annotated[list[Side], Field(min_length=2, max_length=2)]


def _named_or_own(value: Any) -> str:
    return CASE + ("own" if isinstance(value, Mapping) else "inner" if isinstance(value, int) else "named")


class TTLoRASection(AdapterSection):
    """A TT-LoRA expert."""

    kind: Literal["tt_lora"]
    """Kind of the expert: the cores of tensor trains."""
    alpha: Positive | None = None
    """Scale of the adapter: alpha multiplies its product (default: 8)."""
    factors: Annotated[
        Annotated[Literal["auto", "published"], Tag(CASE + "named")]
        | Annotated[Count, Tag(CASE + "inner")]
        | Annotated[dict[str, Sides], Tag(CASE + "own")],
        Discriminator(_named_or_own),
    ] = "auto"
    """Factors of each matrix's sizes: auto, the fewest numbers; published, as published for such matrices; a number,
    the inner of two factors a side; or `[[inputs], [outputs]]` by target."""
    init: Literal["zero", "published"] = "zero"
    """Start of the cores: zero changes nothing, published draws cores of norm 1."""

    @property
    def scale(self) -> float:
        return 8.0 if self.alpha is None else self.alpha

    def shape_keys(self) -> tuple[str, ...]:
        return (*super().shape_keys(), "factors", "init")

    @model_validator(mode="after")
    def _factorised(self) -> "TTLoRASection":
        if not isinstance(self.factors, Mapping):
            return self
        if self.sweep and self.sweep.targets:
            what = "factors by target cannot be combined with a sweep of targets"
            raise refusal(RecipeError(what, expected="auto or published"), "factors")
        if foreign := [target for target in self.factors if target not in self.targets]:
            error = RecipeError("no target of this expert", expected=f"one of {', '.join(self.targets)}")
            raise refusal(error, "factors", foreign[0])
        if missing := [target for target in self.targets if target not in self.factors]:
            raise refusal(RecipeError(f"no factors for {', '.join(missing)}", hint="name all targets"), "factors")
        return self


class TTLoRAKind(AdapterKind[TrainDesign, TensorTrain]):
    """Cores of tensor trains."""

    word = "tt_lora"
    section = TTLoRASection
    adopts = False  # `lora` reads such a folder too

    def design(self, spec: Any) -> TrainDesign:
        given = spec.factors
        if isinstance(given, Mapping):
            given = {target: Factors(*map(tuple, sides)) for target, sides in given.items()}
        return TrainDesign(spec.rank, spec.scale, [*spec.targets], given, spec.init)

    def joint(self, designs: Sequence[TrainDesign]) -> TrainDesign:
        """The largest rank and scale, and every target; factors and start where all experts agree on them."""
        first, targets = designs[0], {target for design in designs for target in design.targets}
        return TrainDesign(
            max(design.rank for design in designs),
            max(design.scale for design in designs),
            sorted(targets),
            first.factors if all(design.factors == first.factors for design in designs) else "auto",
            first.init if len({design.init for design in designs}) == 1 else "zero",
        )

    def wide(
        self, designs: Sequence[TrainDesign], layers: Sequence[str | None], body: Body, own: str | None
    ) -> TrainDesign:
        """The smallest rank of no fewer numbers, with factors found for it: declared ones may not admit the rank."""
        joint = replace(self.joint(designs), factors="auto")
        return joint.of_size(numbers_of(designs, layers, body), body, layer_range(own, body.config.num_layers))

    def holds(self, folder: Path) -> bool:
        return (folder / tt_lora.CONFIG).is_file()

    def beside(self, base: Outline, folder: Path) -> tuple[Footprint, list[Difference]]:
        """The pairs that the cores are merged to in a mixture."""
        rank, _, factors = tt_lora.read_declared(folder / tt_lora.CONFIG)
        pairs = {path: (rank, *own.sizes) for path, own in factors.items()}
        return Footprint(pairs, weighed(folder, heads.TENSORS)), []
