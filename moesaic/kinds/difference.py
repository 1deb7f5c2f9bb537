"""A fine-tuned model as a LoRA expert: what it adds to the weights of its base, as far as a rank can hold it.

Measures also how much changed outside the linears, where a LoRA holds nothing. Knows nothing about files.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from moesaic.adapters import LoRA
from moesaic.adapters.lora import adaptable
from moesaic.artefacts.base import Base
from moesaic.config import DecoderConfig
from moesaic.errors import CompatibilityError
from moesaic.model.decoder import Decoder
from moesaic.nn.sparse import separate
from moesaic.tokenizer import Tokenizer, compare
from moesaic.tokenizer.comparing import SPACES

SMALL = 1024
"""The longest shorter side of a matrix whose singular values are all computed; of larger ones only the largest are."""
SHOWN = 3
"""Tensors that a message names."""


@dataclass(frozen=True)
class Difference:
    """A fine-tuned model as an expert, and what an expert cannot hold.

    `kept`: the share of the change's energy (the sum of its squares) in the linears that the pairs hold. `outside`: the
    share of all energy that lies in other tensors. `changed`: those tensors, each with its change relative to its norm.
    """

    lora: LoRA
    kept: float
    outside: float
    changed: dict[str, float]


@torch.no_grad()
def difference(base: Decoder, tuned: Decoder, rank: int) -> Difference:
    """Reduce the change of every linear to its `rank` largest singular values; unchanged linears are left out.

    Both decoders are plain and of one configuration. Raises CompatibilityError where no linear changed.
    """
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    inside = kept = outside = 0.0
    changed: dict[str, float] = {}
    inner = {f"{path}.weight" for path in adaptable(base) if path != "lm_head"}
    theirs = separate(dict(tuned.named_parameters()))
    for name, before in separate(dict(base.named_parameters())).items():  # a tied head is listed once, as the embedding
        change = theirs[name].float() - before.float()
        energy = change.double().square().sum().item()
        if not energy:
            continue
        if name in inner:
            pair, held = truncated(change, rank)
            pairs[name.removesuffix(".weight")] = pair
            inside, kept = inside + energy, kept + held
        else:
            outside += energy
            changed[name] = energy**0.5 / max(before.double().norm().item(), 1e-12)
    if not pairs:
        what = "no linear differs from the base"
        raise CompatibilityError(what, got=f"changes in {', '.join(changed)}" if changed else "the same weights")
    alphas = {path: float(len(a)) for path, (a, _) in pairs.items() if len(a) != rank}  # so that every scale is 1
    return Difference(LoRA(rank, float(rank), pairs, alphas), kept / inside, outside / (inside + outside), changed)


def require_variant(base: Base, config: DecoderConfig, tokenizer: Tokenizer, path: Path) -> None:
    """Refuse a model that cannot be a fine-tuned version of the base: its shape or its tokenizer is another."""
    require_shape(base.decoder.config, config, path, "the model is not a fine-tuned version of the base: its shape")
    accepted = ("templates", "special ids", SPACES)
    if found := [one for one in compare(base.tokenizer, tokenizer) if one.what not in accepted]:
        raise CompatibilityError("the model's tokenizer differs from the base's", path=path, got=str(found[0]))


def require_shape(config: DecoderConfig, other: DecoderConfig, path: Path, what: str) -> None:
    """Refuse a model of another size or wiring by the first field that differs. `what`: its subject in the message."""
    if other != config:
        mine, yours = config.wiring, other.wiring
        field = next(key for key in [*mine, *yours] if mine.get(key) != yours.get(key))
        expected, got = mine.get(field), str(yours.get(field))
        raise CompatibilityError(f"{what} differs", path=path, field=field, expected=expected, got=got)


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


def farthest(moved: Mapping[str, float]) -> str:
    """Name the tensors that moved farthest, relative to their norms, and say how many more moved."""
    shown = sorted(moved.items(), key=lambda item: -item[1])[:SHOWN]
    more = f" and {len(moved) - SHOWN} more" if len(moved) > SHOWN else ""
    return ", ".join(f"{name} by {share:.2%}" for name, share in shown) + more
