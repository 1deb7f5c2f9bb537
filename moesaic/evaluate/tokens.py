"""The owner of each token of a text: the base or the expert that predicts it best.

Knows nothing about routers: the choice is made with hindsight.
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
"""The best predictor of a token, its nats, and those of the base; None for the first token, which has no context."""


@torch.inference_mode()
def token_owners(
    logits: Logits, ids: list[int], names: tuple[str, ...], device: torch.device | None = None
) -> list[Owner]:
    """Find the owner of every id; `names`: the experts in order. Ties go to the base, then to the first expert.

    `device`: that of the model.
    """
    text, targets = torch.tensor([ids[:-1]], device=device), torch.tensor([ids[1:]], device=device)

    def nats(expert: int) -> Float[Tensor, "1 t"]:
        gates = Gates.of(controls.fixed(expert, 1, len(names)).to(text.device))
        return token_nll(logits(text, gates, None), targets)

    table = torch.cat([nats(expert) for expert in (-1, *range(len(names)))])
    best, owners = table.min(0)
    found = zip(owners.tolist(), best.tolist(), table[0].tolist(), strict=True)
    return [(None, None, None), *(((BASE, *names)[owner], least, base) for owner, least, base in found)]


def pieces(decode: Callable[[list[int]], str], ids: list[int]) -> list[str]:
    """Split `decode(ids)` into the text that each id adds.

    An id that ends within a character adds nothing; the id that completes the character adds all of it.
    """
    whole, known, found = decode(ids), 0, []
    for end in range(1, len(ids) + 1):
        sure = known + _shared(decode(ids[:end])[known:], whole[known:])
        found.append(whole[known:sure])
        known = sure
    return found


def _shared(some: str, other: str) -> int:
    return next((i for i, (a, b) in enumerate(zip(some, other, strict=False)) if a != b), min(len(some), len(other)))
