"""What routers read: a batch of prompts, and the states of the base pooled over each prompt's own tokens.

Knows nothing about routers. Padding never counts: a row alone and in a batch read the same.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from threading import get_ident
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from moesaic.config import Feature
from moesaic.model.decoder import Decoder
from moesaic.routing import Gates


@dataclass(frozen=True)
class Prompts:
    """A right-padded batch of prompts: token ids, how many of them are real, and the texts."""

    ids: Int[Tensor, "b t"]
    lengths: Int[Tensor, " b"]
    texts: list[str]

    @staticmethod
    def pad(rows: list[list[int]], texts: list[str], device: torch.device | None = None) -> "Prompts":
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
        return Prompts(ids, torch.tensor([len(row) for row in rows], device=device), texts)


def read(feature: Feature, decoder: Decoder, num_experts: int, prompts: Prompts) -> Float[Tensor, "b d"] | list[str]:
    """The feature of each prompt under the base alone (every expert gated off)."""
    return read_all([feature], decoder, num_experts, prompts)[0]


def read_all(
    features: list[Feature], decoder: Decoder, num_experts: int, prompts: Prompts
) -> list[Float[Tensor, "b d"] | list[str]]:
    """Several features from one pass of the base, no deeper than the deepest of them."""
    blocks, found = len(decoder.layers), dict[Feature, Tensor | list[str]]()
    x = decoder.embed_tokens(prompts.ids)
    gates, at = Gates.one(-1, len(x), num_experts, x), 0
    for feature in sorted(features, key=lambda f: blocks + 1 if f.depth is None else f.depth):
        depth = blocks if feature.depth is None else feature.depth
        x, _ = decoder.run(x, None, range(at, depth), gates)
        at, top = depth, decoder.norm(x) if feature.depth is None else x
        found[feature] = prompts.texts if feature.source == "text" else pool(top, prompts.lengths, feature)
    return [found[feature] for feature in features]


def pool(x: Float[Tensor, "b t d"], lengths: Int[Tensor, " b"], feature: Feature) -> Float[Tensor, "b d"]:
    """Mean over the real tokens, or the last of them."""
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
    real = torch.arange(prompts.ids.shape[1], device=prompts.ids.device) < prompts.lengths[:, None]

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
