"""LoRA experts: pairs of thin matrices beside the linears of a shared base.

Knows nothing about rows or routers.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from moesaic.adapters import Design, LoRA, LoRADesign
from moesaic.artefacts import heads
from moesaic.interop.outline import Outline, adapter_outline, is_adapter, weighed
from moesaic.kinds.adapters import AdapterKind, AdapterSection, numbers_of
from moesaic.kinds.compatibility import Difference, adapter_differences
from moesaic.kinds.kind import Body, Footprint
from moesaic.sections.layers import layer_range
from moesaic.sections.section import Positive, Text


class LoRASection(AdapterSection):
    """A LoRA expert."""

    kind: Literal["lora"]
    """Kind of the expert: pairs of thin matrices."""
    path: Text | None = None
    """Folder or `org/name@revision` of a PEFT adapter that was trained elsewhere."""
    alpha: Positive | None = None
    """Scale of the adapter: alpha / rank multiplies its product (default: 2 * rank)."""

    @property
    def scale(self) -> float:
        return 2.0 if self.alpha is None else self.alpha / self.rank


class LoRAKind(AdapterKind[LoRADesign, LoRA]):
    """Pairs of thin matrices."""

    word = "lora"
    section = LoRASection

    def design(self, spec: Any) -> LoRADesign:
        return LoRADesign(spec.rank, spec.scale, [*spec.targets])

    def joint(self, designs: Sequence[Design]) -> LoRADesign:
        """The largest rank and scale, and every target; also where some of the experts are tensor trains."""
        targets = {target for design in designs for target in design.targets}
        return LoRADesign(max(d.rank for d in designs), max(d.scale for d in designs), sorted(targets))

    def wide(self, designs: Sequence[Design], layers: Sequence[str | None], body: Body, own: str | None) -> LoRADesign:
        """The sum of the ranks; where some of the experts are tensor trains, the smallest rank of no fewer numbers."""
        joint = self.joint(designs)
        if all(type(design) is LoRADesign for design in designs):
            return replace(joint, rank=sum(design.rank for design in designs))
        return joint.of_size(numbers_of(designs, layers, body), body, layer_range(own, body.config.num_layers))

    def holds(self, folder: Path) -> bool:
        return is_adapter(folder)

    def beside(self, base: Outline, folder: Path) -> tuple[Footprint, list[Difference]]:
        adapter = adapter_outline(folder)
        return Footprint(adapter.pairs, weighed(folder, heads.TENSORS)), adapter_differences(base, adapter)
