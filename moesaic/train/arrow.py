"""An Arrow router (arXiv 2405.11157), made from the weights of base and experts alone, without prompts.

Knows nothing about files or text: usual inputs are ids that the base itself generates.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from moesaic.adapters import LoRA
from moesaic.adapters.sparse_experts import place
from moesaic.errors import CompatibilityError
from moesaic.model.decoder import Decoder
from moesaic.model.features import Prompts, project
from moesaic.nn import Cache
from moesaic.routing.routers import ArrowRouter

ROWS, TOKENS = 64, 32  # texts that the base generates, and tokens in each


@torch.no_grad()
def fit_arrow(decoder: Decoder, experts: list[LoRA], start: tuple[int, ...], eos: int, seed: int) -> ArrowRouter:
    """The router of these experts, in their order, over the plain decoder of their base.

    `start`: ids that every text of the base begins with; where empty, a text begins after `eos`, the end of another.
    It reads linears alone: tokens choose the matrices of sparse experts by themselves. CompatibilityError where none is
    adapted.
    """
    paths = sorted({path for expert in experts for path in expert.pairs if place(path) is None})
    if not paths:
        what, hint = "an Arrow router reads adapted linears, and no expert has one", "choose another router"
        raise CompatibilityError(what, field="targets", hint=hint)
    widths = {path: next(x.pairs[path][0].shape[1] for x in experts if path in x.pairs) for path in paths}
    router = ArrowRouter(widths, len(experts))
    for number, path in enumerate(paths):
        for index, expert in enumerate(experts):
            if path in expert.pairs:
                router.prototypes[path][index] = direction(*expert.pairs[path])
            else:
                router.adapts[number, index] = 0.0
    usual = project(decoder, 1, written(decoder, start, eos, seed), router.prototypes)
    scores = usual.unflatten(-1, router.mean.shape)
    router.mean.copy_(scores.mean(0))
    router.deviation.copy_(scores.std(0).clamp_min(1e-6))
    router.spread.copy_(router.reaction(usual).std(0).clamp_min(1e-6))
    return router.eval()


def direction(a: Float[Tensor, "r i"], b: Float[Tensor, "r o"]) -> Float[Tensor, " i"]:
    """The unit input that B A enlarges most: the first right singular vector of R A, where B = Q R."""
    _, triangle = torch.linalg.qr(b.t())
    _, _, right = torch.linalg.svd(triangle @ a, full_matrices=False)
    return right[0]


def overlaps(router: ArrowRouter) -> Float[Tensor, "e e"]:
    """Mean absolute cosine of two experts' prototypes over the linears that both adapt: 0 to 1, 1 where equal."""
    total = torch.zeros(router.num_experts, router.num_experts)
    for vectors in router.prototypes.values():
        unit = F.normalize(vectors, dim=-1)
        total += (unit @ unit.t()).abs()
    return total / (router.adapts.t() @ router.adapts).clamp_min(1)


def written(decoder: Decoder, start: tuple[int, ...], eos: int, seed: int) -> Prompts:
    """Texts that the base samples without a prompt."""
    generator, first = torch.Generator().manual_seed(seed), start or (eos,)
    tokens = min(TOKENS, decoder.config.context - len(first))
    new: Int[Tensor, "n t"] = torch.tensor([first] * ROWS)
    ids = new if start else new[:, :0]
    cache = Cache.empty(decoder.config, ROWS, len(first) + tokens, like=decoder.norm.weight)
    for _ in range(tokens):
        logits = decoder(new, cache).logits[:, -1]
        cache = cache.advance(new.shape[1])
        new = torch.multinomial(logits.softmax(-1), 1, generator=generator)
        ids = torch.cat([ids, new], 1)
    return Prompts(ids, torch.full((ROWS,), ids.shape[1]), [""] * ROWS)
