"""One feed-forward expert by itself: in the place of the base's blocks, or beside them, to be trained or to answer.

Knows nothing about optimisers, files or who chooses between experts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from moesaic.adapters.feedforward import FFN, Block, attach, block_of, ffns, require_glu, standing
from moesaic.errors import CompatibilityError


@dataclass(frozen=True)
class Blocks:
    """What a feed-forward expert is before it has values: the base's blocks, `inner` wide, 0: as wide as they are.

    `anchor`: it is trained beside the base's own blocks, which stay as they are, and each has half the say, so that it
    learns to be mixed: a mixture of the base and one expert, as experts are trained in FlexOlmo (arXiv 2507.07024,
    section 3) and BAR, but with fixed shares instead of a router's. By itself such an expert goes farther from the
    base than it was meant to, as nobody halves its steps.
    """

    inner: int = 0
    anchor: bool = False

    def fresh(self, decoder: nn.Module, layers: range, generator: Generator) -> FFN:
        """An expert that computes what the base does."""
        own = FFN.of(decoder, layers)
        return widened(own, self.inner, generator) if self.inner else own

    def plant(self, decoder: nn.Module, expert: FFN) -> None:
        """Put an expert where it is trained; its numbers ask for gradients, and what the others do is left alone."""
        if self.anchor:
            attach(decoder, [expert])
        else:
            graft(decoder, expert)

    def lifted(self, decoder: nn.Module, layers: range) -> FFN:
        """What has become of an expert that was planted."""
        return standing(decoder, 0) if self.anchor else FFN.of(decoder, layers)


def graft(decoder: nn.Module, expert: FFN) -> None:
    """Put an expert's blocks, of whatever width, in the place of the base's: what a row that chose it alone gets."""
    slots = ffns(decoder)
    for path, (gate, up, down) in expert.blocks.items():
        if path not in slots:
            raise CompatibilityError("the base has no such feed-forward block", field=path)
        slot = require_glu(slots[path], path)
        own = slot.gate_proj.weight
        if gate.shape[1] != own.shape[1]:
            what, expected, got = "the expert was made for another base", f"{own.shape[1]} columns", str(gate.shape[1])
            raise CompatibilityError(what, field=f"{path}.gate", expected=expected, got=got)
        for linear, weight in ((slot.gate_proj, gate), (slot.up_proj, up), (slot.down_proj, down.t())):
            linear.weight = nn.Parameter(weight.to(own.dtype).clone(memory_format=torch.contiguous_format))


def widened(expert: FFN, inner: int, generator: Generator) -> FFN:
    """The same function by blocks of `inner` columns: those added read at random, and write nothing yet.

    What they read is drawn as widely spread as what the block's own columns read.
    """

    def wider(part: Tensor, spread: float) -> Tensor:
        added = part.new_empty(inner - len(part), part.shape[1]).normal_(0.0, spread, generator=generator)
        return torch.cat([part, added])

    def block(gate: Tensor, up: Tensor, down: Tensor) -> Block:
        if inner < len(gate):
            raise CompatibilityError("a block is not made narrower", expected=f">= {len(gate)}", got=inner)
        return wider(gate, gate.std().item()), wider(up, up.std().item()), wider(down, 0.0)

    return FFN({path: block(*own) for path, own in sorted(expert.blocks.items())})


def mean_of(decoder: nn.Module, experts: Sequence[FFN]) -> FFN:
    """The mean of several experts' blocks; where one has none, the base's own stands for it, as in a mixture."""
    slots = ffns(decoder)
    blocks = {}
    for path in sorted({path for expert in experts for path in expert.blocks}):
        base = block_of(require_glu(slots[path], path))
        held = [expert.blocks.get(path, base) for expert in experts]
        blocks[path] = tuple(torch.stack(parts).mean(0) for parts in zip(*held, strict=True))
    return FFN(blocks)  # type: ignore[arg-type]  # a tuple of three, which zip cannot say
