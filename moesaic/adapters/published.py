"""Published settings of TT-LoRA, by model: shapes, rank, alpha, learning rate.

From the authors' code (TT-LoRA MoE, arXiv 2504.21190). Knows nothing about tensors; `factors` picks among these.
"""

import json
from dataclasses import dataclass
from importlib.resources import files
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


def read_published() -> tuple[PublishedTTLoRA, ...]:
    """The settings in published.json; the first of two entries of a model is the paper's."""
    rows = json.loads(files(__package__).joinpath("published.json").read_bytes())
    shapes = [{target: (tuple(i), tuple(o)) for target, (i, o) in row["shapes"].items()} for row in rows]
    return tuple(PublishedTTLoRA(**{**row, "shapes": own}) for row, own in zip(rows, shapes, strict=True))


PUBLISHED = read_published()


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
