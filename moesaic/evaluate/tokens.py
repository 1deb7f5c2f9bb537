"""Who predicts each token of a text best: the base, or the base with one expert beside it.

Knows nothing about routers: this is what one would choose for every token after having seen it.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from moesaic.evaluate.score import Logits
from moesaic.ops.losses import token_nll
from moesaic.routing import Gates, controls

BASE = "base"
Owner = tuple[str | None, float | None, float | None]
"""Who predicts a token best, its nats, and the base's; the first token, which nobody predicts, has none."""


@torch.inference_mode()
def token_owners(logits: Logits, ids: list[int], names: tuple[str, ...]) -> list[Owner]:
    """The owner of every id, `names` being the experts in their order; of equals the base, then the first."""
    text, targets = torch.tensor([ids[:-1]]), torch.tensor([ids[1:]])

    def nats(expert: int) -> Float[Tensor, "1 t"]:
        gates = Gates.of(controls.fixed(expert, 1, len(names)))
        return token_nll(logits(text, gates), targets)

    table = torch.cat([nats(expert) for expert in (-1, *range(len(names)))])
    best, who = table.min(0)
    found = zip(who.tolist(), best.tolist(), table[0].tolist(), strict=True)
    return [(None, None, None), *(((BASE, *names)[place], least, base) for place, least, base in found)]


def pieces(decode: Callable[[list[int]], str], ids: list[int]) -> list[str]:
    """The text that each id adds to those before it; joined they are `decode(ids)` exactly.

    An id that ends within a character adds nothing, and the one that completes the character adds it whole.
    """
    whole, known, found = decode(ids), 0, []
    for end in range(1, len(ids) + 1):
        sure = known + _shared(decode(ids[:end])[known:], whole[known:])
        found.append(whole[known:sure])
        known = sure
    return found


def _shared(some: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    return next((i for i, (a, b) in enumerate(zip(some, other, strict=False)) if a != b), min(len(some), len(other)))
