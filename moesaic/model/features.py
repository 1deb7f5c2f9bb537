"""Features for routers: a batch of prompts, their texts, and states of the base pooled over each prompt's own tokens.

Knows nothing about routers. Padding never counts: a row has the same feature alone and in a batch.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from moesaic.config import Feature
from moesaic.hardware import exact, sent
from moesaic.model.decoder import Decoder, Hidden
from moesaic.model.text_counts import characters, wording
from moesaic.ops.host import to_device
from moesaic.routing import Gates, States
from moesaic.routing.states import Features


@dataclass(frozen=True)
class Prompts:
    """A right-padded batch of prompts: token ids, the number of real ones, and the texts.

    `types`: which of two texts each token belongs to, for models with token types.
    """

    ids: Int[Tensor, "b t"]
    lengths: Int[Tensor, " b"]
    texts: list[str]
    types: Int[Tensor, "b t"] | None = None

    @staticmethod
    def pad(
        rows: list[list[int]],
        texts: list[str],
        device: torch.device | None = None,
        types: list[list[int]] | None = None,
        with_id: int = 0,
    ) -> "Prompts":
        """Pad rows to one length by `with_id`."""
        width = max(map(len, rows))

        def filled(some: list[list[int]], id: int) -> Int[Tensor, "b t"]:
            return sent(torch.tensor([row + [id] * (width - len(row)) for row in some]), device)

        lengths = sent(torch.tensor([len(row) for row in rows]), device)
        return Prompts(filled(rows, with_id), lengths, texts, None if types is None else filled(types, 0))

    @staticmethod
    def of_texts(texts: list[str]) -> "Prompts":
        """Texts without tokens, for routers that need no base."""
        return Prompts(torch.zeros(len(texts), 0, dtype=torch.long), torch.zeros(len(texts), dtype=torch.long), texts)

    @property
    def real(self) -> Bool[Tensor, "b t"]:
        return torch.arange(self.ids.shape[1], device=self.ids.device) < self.lengths[:, None]


@runtime_checkable
class Body(Protocol):
    """A model that states are read from, block by block: a decoder or an encoder.

    `embed`: the input of the first block. `blocks`: passes a right-padded batch through a range of blocks; `real`: true
    at tokens. `top`: the states behind the last block's norm.
    """

    layers: nn.ModuleList

    def embed(self, ids: Int[Tensor, "b t"], types: Int[Tensor, "b t"] | None) -> Hidden: ...
    def blocks(self, x: Hidden, layers: range, gates: Gates | None, real: Bool[Tensor, "b t"]) -> Hidden: ...
    def top(self, x: Hidden) -> Hidden: ...


def read(feature: Feature, body: Body, num_experts: int, prompts: Prompts) -> Features:
    """The feature of each prompt under the base alone."""
    return read_all([feature], body, num_experts, prompts)[0]


def read_all(features: list[Feature], body: Body, num_experts: int, prompts: Prompts) -> list[Features]:
    """Several features from one pass of the base alone, no deeper than the deepest feature."""
    blocks, found = len(body.layers), dict[Feature, Features]()
    x, real = body.embed(prompts.ids, prompts.types), prompts.real
    gates, at = Gates.one(-1, len(x), num_experts, x), 0
    for feature in sorted(features, key=lambda f: blocks + 1 if f.depth is None else f.depth):
        depth = blocks if feature.depth is None else feature.depth
        x = body.blocks(x, range(at, depth), gates, real)
        at, top = depth, body.top(x) if feature.depth is None else x
        if feature.source == "text":
            found[feature] = prompts.texts
        elif feature.source == "characters":
            found[feature] = characters(prompts.texts).to(x.device, exact(x.dtype), non_blocking=True)
        elif feature.source == "wording":
            found[feature] = wording(prompts.texts).to(x.device, exact(x.dtype), non_blocking=True)
        else:
            found[feature] = pool(top, prompts.lengths, feature)
    return [found[feature] for feature in features]


def pool(x: Hidden, lengths: Int[Tensor, " b"], feature: Feature) -> Float[Tensor, "b d"] | States:
    """States pooled as the feature says, in float32 at least; all of them for routers that pool by themselves."""
    x = x.to(exact(x.dtype))
    return States.of(x, lengths) if feature.pool == "none" else pooled(x, lengths, feature.pool)


def pooled(x: Hidden, lengths: Int[Tensor, " b"], how: str) -> Float[Tensor, "b d"]:
    """The state of the `last` real token, or the `mean` over the real tokens."""
    if how == "last":
        return x[torch.arange(len(x), device=x.device), lengths - 1]
    real = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
    return (x * real[..., None]).sum(1) / lengths[:, None]


def last(x: Hidden, counts: Sequence[int]) -> Float[Tensor, "b d"]:
    """The state of each row's last token, of which the host knows the number; waits for nothing."""
    width = x.shape[1]
    if all(count == width for count in counts):
        return x[:, -1]
    ends = [row * width + count - 1 for row, count in enumerate(counts)]
    return x.flatten(0, 1).index_select(0, to_device(ends, x.device))


def project(
    decoder: Decoder, num_experts: int, prompts: Prompts, prototypes: Mapping[str, Float[Tensor, "e i"]]
) -> Float[Tensor, "b d"]:
    """Mean over each prompt's own tokens of |x . v|: x the input of a linear, v the prototypes of that linear.

    Linear-major (b, linears x e); a pass of the base alone, no deeper than the deepest of the linears.
    """
    found, measuring = dict[str, Tensor](), decoder
    for path, vectors in prototypes.items():
        slot = Projecting(decoder.get_submodule(path), vectors, prompts, partial(found.__setitem__, path))
        measuring = with_part(measuring, path, slot)
    x = decoder.embed_tokens(prompts.ids)
    deepest = max(int(path.split(".")[1]) for path in prototypes)
    measuring.run(x, None, range(deepest + 1), Gates.one(-1, len(x), num_experts, x))
    return torch.stack([found[path] for path in prototypes], 1).flatten(1)


class Projecting(nn.Module):
    """A filling of the linear slot that passes its input's mean size along each prototype to `note`."""

    def __init__(
        self,
        base: nn.Module,
        prototypes: Float[Tensor, "e i"],
        prompts: Prompts,
        note: Callable[[Float[Tensor, "b e"]], None],
    ):
        super().__init__()
        self.base, self.prototypes, self.prompts, self.note = base, prototypes, prompts, note

    def forward(self, x: Float[Tensor, "b t i"], gates: Gates | None) -> Float[Tensor, "b t o"]:
        wide = x.to(exact(x.dtype))
        sizes = (wide @ self.prototypes.to(wide.dtype).t()).abs() * self.prompts.real[..., None]
        self.note(sizes.sum(1) / self.prompts.lengths[:, None])
        return self.base(x, gates)


Model = TypeVar("Model", bound=nn.Module)


def with_part(model: Model, path: str, part: nn.Module) -> Model:
    """A copy of a model with another part at this path, which shares all other parts with the original."""
    twin = copy(model)
    twin._modules = dict(model._modules)
    name, _, rest = path.partition(".")
    twin._modules[name] = with_part(model.get_submodule(name), rest, part) if rest else part
    return twin
