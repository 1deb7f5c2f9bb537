"""What routers read: a batch of prompts, their texts, and states of the base pooled over each prompt's own tokens.

Knows nothing about routers. Padding never counts: a row alone and in a batch read the same.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from threading import get_ident
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from moesaic.config import Feature
from moesaic.model.characters import characters
from moesaic.model.decoder import Decoder
from moesaic.routing import Gates, States


@dataclass(frozen=True)
class Prompts:
    """A right-padded batch of prompts: token ids, how many of them are real, and the texts.

    `types`: which of two texts each token belongs to, where the model asks for that.
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
        """Put rows side by side; `with_id`: what fills the shorter ones."""
        width = max(map(len, rows))

        def filled(some: list[list[int]], id: int) -> Int[Tensor, "b t"]:
            return torch.tensor([row + [id] * (width - len(row)) for row in some], device=device)

        lengths = torch.tensor([len(row) for row in rows], device=device)
        return Prompts(filled(rows, with_id), lengths, texts, None if types is None else filled(types, 0))

    @property
    def real(self) -> Bool[Tensor, "b t"]:
        """Where there is a token, not padding."""
        return torch.arange(self.ids.shape[1], device=self.ids.device) < self.lengths[:, None]


@runtime_checkable
class Body(Protocol):
    """What features are read from, block by block: a decoder or an encoder."""

    layers: nn.ModuleList

    def embed(self, ids: Int[Tensor, "b t"], types: Int[Tensor, "b t"] | None) -> Float[Tensor, "b t d"]:
        """What goes into the first block."""

    def blocks(
        self, x: Float[Tensor, "b t d"], layers: range, gates: Gates | None, real: Bool[Tensor, "b t"]
    ) -> Float[Tensor, "b t d"]:
        """A right-padded batch through a range of blocks; `real`: where there is a token."""

    def top(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """What is done to the last block's states."""


def read(feature: Feature, body: Body, num_experts: int, prompts: Prompts) -> Float[Tensor, "b d"] | States | list[str]:
    """The feature of each prompt under the base alone (every expert gated off)."""
    return read_all([feature], body, num_experts, prompts)[0]


def read_all(
    features: list[Feature], body: Body, num_experts: int, prompts: Prompts
) -> list[Float[Tensor, "b d"] | States | list[str]]:
    """Several features from one pass of the base, no deeper than the deepest of them."""
    blocks, found = len(body.layers), dict[Feature, Tensor | States | list[str]]()
    x, real = body.embed(prompts.ids, prompts.types), prompts.real
    gates, at = Gates.one(-1, len(x), num_experts, x), 0
    for feature in sorted(features, key=lambda f: blocks + 1 if f.depth is None else f.depth):
        depth = blocks if feature.depth is None else feature.depth
        x = body.blocks(x, range(at, depth), gates, real)
        at, top = depth, body.top(x) if feature.depth is None else x
        match feature.source:
            case "text":
                found[feature] = prompts.texts
            case "characters":
                found[feature] = characters(prompts.texts).to(x)
            case _:
                found[feature] = pool(top, prompts.lengths, feature)
    return [found[feature] for feature in features]


def pool(x: Float[Tensor, "b t d"], lengths: Int[Tensor, " b"], feature: Feature) -> Float[Tensor, "b d"] | States:
    """Mean over the real tokens, or the last of them; or all of them, for who pools them himself."""
    if feature.pool == "none":
        return States.of(x, lengths)
    if feature.pool == "last":
        return x[torch.arange(len(x), device=x.device), lengths - 1]
    real = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
    return (x * real[..., None]).sum(1) / lengths[:, None]


def project(
    decoder: Decoder, num_experts: int, prompts: Prompts, prototypes: Mapping[str, Float[Tensor, "e i"]]
) -> Float[Tensor, "b d"]:
    """Mean over each prompt's own tokens of |x . v|: x the input of a linear, v the prototypes looked for there.

    Linear-major (b, linears x e); a pass of the base alone, no deeper than the deepest of the linears.
    """
    found: dict[str, Tensor] = {}
    real = prompts.real

    def note(path: str, x: Tensor) -> None:
        sizes = (x @ prototypes[path].to(x.dtype).t()).abs() * real[..., None]
        found[path] = sizes.sum(1) / prompts.lengths[:, None]

    x = decoder.embed_tokens(prompts.ids)
    with ExitStack() as stack:
        for path in prototypes:
            stack.enter_context(listening(decoder.get_submodule(path), partial(note, path)))
        deepest = max(int(path.split(".")[1]) for path in prototypes)
        decoder.run(x, None, range(deepest + 1), Gates.one(-1, len(x), num_experts, x))
    return torch.stack([found[path] for path in prototypes], 1).flatten(1)


@contextmanager
def listening(module: nn.Module, note: Callable[[Tensor], None]) -> Iterator[None]:
    """Tells `note` what a module is called with by this thread."""
    here = get_ident()

    def heard(_: nn.Module, given: tuple[Any, ...]) -> None:
        if get_ident() == here:
            note(given[0])

    handle = module.register_forward_pre_hook(heard)
    try:
        yield
    finally:
        handle.remove()
