"""A fine-tuned model as a LoRA expert: what it adds to the weights of its base, as far as a rank can hold it.

Knows nothing about files. What changed outside the linears cannot be held, and it is told how much that is.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from moesaic.adapters import LoRA
from moesaic.errors import CompatibilityError
from moesaic.model.decoder import Decoder
from moesaic.nn import Linear

SMALL = 1024
"""Up to this side all singular values are computed; of larger matrices only the largest."""


@dataclass(frozen=True)
class Difference:
    """A fine-tuned model as an expert, and what was lost.

    `kept`: the share of the change's energy (the sum of its squares) in the linears that the pairs hold. `outside`: the
    share of all energy that lies in other tensors. `changed`: those, each with how far it moved of its own norm.
    """

    lora: LoRA
    kept: float
    outside: float
    changed: dict[str, float]


@torch.no_grad()
def difference(base: Decoder, tuned: Decoder, rank: int) -> Difference:
    """The change of every linear by its `rank` largest singular values; linears that did not change are left out.

    Both decoders are plain and of one configuration. Raises CompatibilityError where no linear changed.
    """
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    inside = kept = outside = 0.0
    changed: dict[str, float] = {}
    linears = {f"{path}.weight" for path, m in base.named_modules() if isinstance(m, Linear) and path != "lm_head"}
    for name, before in base.named_parameters():  # a tied head is there once, as the embedding
        change = tuned.get_parameter(name).float() - before.float()
        energy = change.double().square().sum().item()
        if not energy:
            continue
        if name in linears:
            pair, held = truncated(change, rank)
            pairs[name.removesuffix(".weight")] = pair
            inside, kept = inside + energy, kept + held
        else:
            outside += energy
            changed[name] = energy**0.5 / max(before.double().norm().item(), 1e-12)
    if not pairs:
        what = "no linear differs from the base"
        raise CompatibilityError(what, got=f"changes in {', '.join(changed)}" if changed else "the same weights")
    return Difference(
        LoRA(rank, float(rank), pairs, scales(pairs, rank)), kept / inside, outside / (inside + outside), changed
    )


def truncated(change: Float[Tensor, "o i"], rank: int) -> tuple[tuple[Tensor, Tensor], float]:
    """A (r, i) and B (r, o) whose product is nearest to the change, and the energy in it; r is at most `rank`."""
    if min(change.shape) <= SMALL:
        left, values, right = torch.linalg.svd(change, full_matrices=False)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            left, values, columns = torch.svd_lowrank(change, min(2 * rank + 8, *change.shape), niter=4)
            right = columns.t()
    r = max(1, min(rank, int((values > values[0] * 1e-6).sum())))
    root = values[:r].sqrt()
    a, b = root[:, None] * right[:r], root[:, None] * left[:, :r].t()
    return (a.contiguous(), b.contiguous()), values[:r].double().square().sum().item()


def scales(pairs: dict[str, tuple[Tensor, Tensor]], rank: int) -> dict[str, float]:
    """The alphas of pairs whose rank is smaller, so that every scale is 1."""
    return {path: float(len(a)) for path, (a, _) in pairs.items() if len(a) != rank}
