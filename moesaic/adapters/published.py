"""Published settings of TT-LoRA, by model: shapes, rank, alpha, learning rate.

From the authors' code (TT-LoRA MoE, arXiv 2504.21190). Knows nothing about tensors; `factors` picks among these.
"""

from dataclasses import dataclass
from math import prod

from moesaic.errors import RecipeError, nearest

Shape = tuple[tuple[int, ...], tuple[int, ...]]

ROLES = {"query": "q", "q_proj": "q", "value": "v", "v_proj": "v"}
"""Name of a linear -> its role: the published adapters adapt only queries and values."""


@dataclass(frozen=True)
class PublishedTTLoRA:
    """TT-LoRA as published for one model; `shapes`: factors of the inputs and of the outputs, by target."""

    name: str
    rank: int
    alpha: float
    lr: float
    layers: int
    shapes: dict[str, Shape]

    @property
    def targets(self) -> list[str]:
        return list(self.shapes)

    @property
    def parameters(self) -> int:
        """Number of parameters of all cores in all layers: r f at the two ends of a train, r f r in between."""
        r = self.rank
        sides = (((*i, *o), i[0] + o[-1]) for i, o in self.shapes.values())
        return self.layers * sum(r * ends + r * r * (sum(factors) - ends) for factors, ends in sides)

    def target(self, role: str) -> str:
        return next(target for target in self.shapes if ROLES[target] == role)

    def sizes(self, role: str) -> tuple[int, int]:
        inputs, outputs = self.shapes[self.target(role)]
        return prod(inputs), prod(outputs)


_ROBERTA = ((64, 4, 3), (3, 4, 64))

# The first of two entries of a model is the paper's.
PUBLISHED = (
    PublishedTTLoRA("roberta-base", 4, 8.0, 1e-3, 12, {"query": _ROBERTA, "value": _ROBERTA}),
    PublishedTTLoRA(
        *("llama-3.2-1b", 5, 16.0, 5e-3, 16),
        {"q_proj": ((16, 8, 4, 4), (4, 4, 8, 16)), "v_proj": ((16, 16, 4, 2), (2, 16, 16))},
    ),
    PublishedTTLoRA(
        *("llama-3.2-1b", 10, 12.0, 1e-3, 16),
        {"q_proj": ((16, 4, 4, 2, 2, 2), (2, 2, 2, 4, 4, 16)), "v_proj": ((16, 4, 4, 2, 2, 2), (2, 4, 4, 16))},
    ),
    PublishedTTLoRA(
        *("llama-3.2-3b", 10, 12.0, 1e-3, 28),
        {"q_proj": ((16, 4, 4, 3, 2, 2), (2, 2, 3, 4, 4, 16)), "v_proj": ((16, 4, 4, 3, 2, 2), (2, 2, 4, 4, 16))},
    ),
    PublishedTTLoRA(
        *("llama-3-8b", 10, 12.0, 1e-3, 32),
        {"q_proj": ((16, 4, 4, 4, 2, 2), (2, 2, 4, 4, 4, 16)), "v_proj": ((16, 4, 4, 4, 2, 2), (2, 2, 4, 4, 16))},
    ),
    PublishedTTLoRA(
        *("llama-3-70b", 10, 12.0, 1e-3, 80),
        {
            "q_proj": ((16, 4, 4, 4, 2, 2, 2), (2, 2, 2, 4, 4, 4, 16)),
            "v_proj": ((16, 4, 4, 4, 2, 2, 2), (2, 2, 4, 4, 16)),
        },
    ),
)


def published_ttlora(model_name: str, rank: int | None = None) -> PublishedTTLoRA:
    """The published settings of TT-LoRA for a model, with their number of `.parameters`.

    llama-3.2-1b was published twice: by default with rank 5, as in the paper; `rank=10` selects the other settings.
    """
    names = list(dict.fromkeys(row.name for row in PUBLISHED))
    rows = [row for row in PUBLISHED if row.name == model_name]
    if not rows:
        expected, hint = f"one of {', '.join(names)}", nearest(model_name, names)
        raise RecipeError("no TT-LoRA is published for this model", expected=expected, got=model_name, hint=hint)
    found = [row for row in rows if rank in (None, row.rank)]
    if not found:
        expected = " or ".join(str(row.rank) for row in rows)
        raise RecipeError("not published with this rank", field="rank", expected=expected, got=rank)
    return found[0]
