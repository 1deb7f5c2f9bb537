"""One feed-forward expert by itself: instead of the base's blocks or beside them, in training or to answer.

Knows nothing about optimisers, files or routers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from moesaic.adapters.feedforward import FFN, FFNBlock, attach, attached, block_at, block_of
from moesaic.errors import CompatibilityError


@dataclass(frozen=True)
class Blocks:
    """The design of a feed-forward expert: the base's blocks, `inner` wide (0: as wide as the base's).

    `anchor`: train the expert beside the frozen blocks of the base, with weight 1/2 each, so that it learns to be
    mixed, as experts are trained in FlexOlmo (arXiv 2507.07024, section 3) and BAR, but with fixed weights instead of a
    router's. Alone such an expert moves farther from the base than in its training.
    """

    inner: int = 0
    anchor: bool = False

    def fresh(self, decoder: nn.Module, layers: range, generator: Generator) -> FFN:
        """Copy the base's blocks: an expert that computes the same function."""
        own = FFN.of(decoder, layers)
        return widened(own, self.inner, generator) if self.inner else own

    def plant(self, decoder: nn.Module, expert: FFN) -> None:
        """Put an expert into the decoder for training, as parameters that need gradients."""
        if self.anchor:
            attach(decoder, [expert])
        else:
            graft(decoder, expert)

    def lifted(self, decoder: nn.Module, layers: range) -> FFN:
        return attached(decoder, 0) if self.anchor else FFN.of(decoder, layers)


def graft(decoder: nn.Module, expert: FFN) -> None:
    """Replace the base's blocks by an expert's, of any width: rows then get what they get from this expert alone."""
    for path, (gate, up, down) in expert.blocks.items():
        slot = block_at(decoder, path)
        own = slot.gate_proj.weight
        if gate.shape[1] != own.shape[1]:
            what, expected, got = "the expert was made for another base", f"{own.shape[1]} columns", str(gate.shape[1])
            raise CompatibilityError(what, field=f"{path}.gate", expected=expected, got=got)
        for linear, weight in ((slot.gate_proj, gate), (slot.up_proj, up), (slot.down_proj, down.t())):
            linear.weight = nn.Parameter(weight.to(own).clone(memory_format=torch.contiguous_format))


def widened(expert: FFN, inner: int, generator: Generator) -> FFN:
    """Widen blocks to `inner` columns without a change of their function: the added columns have a `down` of zero.

    Their `gate` and `up` are normal, with the standard deviation of the block's own.
    """

    def wider(part: Tensor, spread: float) -> Tensor:
        added = torch.empty(inner - len(part), part.shape[1], dtype=part.dtype).normal_(
            0.0, spread, generator=generator
        )
        return torch.cat([part, added.to(part.device)])

    def block(gate: Tensor, up: Tensor, down: Tensor) -> FFNBlock:
        if inner < len(gate):
            raise CompatibilityError("a block cannot be narrowed", expected=f">= {len(gate)}", got=inner)
        return wider(gate, gate.std().item()), wider(up, up.std().item()), wider(down, 0.0)

    return FFN({path: block(*own) for path, own in sorted(expert.blocks.items())})


def mean_of(decoder: nn.Module, experts: Sequence[FFN]) -> FFN:
    """Average several experts' blocks; the base's block replaces a missing one, as in a mixture."""
    blocks = {}
    for path in sorted({path for expert in experts for path in expert.blocks}):
        base = block_of(block_at(decoder, path))
        held = [expert.blocks.get(path, base) for expert in experts]
        blocks[path] = tuple(torch.stack(parts).mean(0) for parts in zip(*held, strict=True))
    return FFN(blocks)  # type: ignore[arg-type]  # a tuple of three, which zip cannot say
