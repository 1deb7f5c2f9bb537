"""Parameters of a mixture: all, those that were trained, and those that answer one request.

Knows nothing about files.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from moesaic.adapters import Adapter, LowRankLinear
from moesaic.adapters.feedforward import FFN
from moesaic.adapters.slots import slots_of
from moesaic.adapters.sparse_experts import Stack
from moesaic.kinds.gates import Weights
from moesaic.model.decoder import Decoder
from moesaic.model.mixture import AdapterMixture
from moesaic.model.whole import ModelMixture
from moesaic.nn import SparseFFN
from moesaic.nn.sparse import Experts
from moesaic.routing.gates import ROUNDING
from moesaic.routing.routers import GatesRouter, Router


def count_parameters(mixture: AdapterMixture, experts: Sequence[Adapter], weights: Weights) -> dict[str, int]:
    """Count a mixture of adapters: `total`, of which `base`, `experts` and `router`; `trained`: experts and router. An
    encoder that the router reads is counted as `encoder`.

    `active`: the base without what is `asleep` in it, the router with its encoder, and the experts that a request
    chose, on average over the decisions `weights`, without what sleeps in them. An expert counts as it was trained and
    is stored: a tensor train by its cores.
    """
    decoder = mixture.decoder
    slots = [*slots_of(decoder, LowRankLinear).values(), *slots_of(decoder, Stack).values()]
    adapted = {id(weight) for slot in slots for weight in (slot.a, slot.b)}
    base = sum(weight.numel() for weight in decoder.parameters() if id(weight) not in adapted)
    total, used = sum(expert.num_parameters for expert in experts), [awake(decoder, expert) for expert in experts]
    chosen = sum(size * share for size, share in zip(used, (weights > 0).double().mean(0).tolist(), strict=True))
    return counted(base, total, mixture.router, base - asleep(decoder) + round(chosen))


def count_blocks(base: Decoder, router: Router, experts: Sequence[FFN], weights: Weights) -> dict[str, int]:
    """Count a mixture of feed-forward blocks beside those of `base`, a plain decoder, as `count_parameters` does.

    `active`: the blocks that a row gives a weight, and in each layer the base's own only where the row's weights leave
    something to it.
    """
    shared = num_parameters(base)
    active = float(shared)
    for path in {path for expert in experts for path in expert.blocks}:
        holders = [index for index, expert in enumerate(experts) if path in expert.blocks]
        left = (1 - weights[:, holders].double().sum(-1)).abs() > ROUNDING
        own = num_parameters(base.get_submodule(path))
        met = sum(FFN({path: experts[e].blocks[path]}).num_parameters * share(weights[:, e] > 0) for e in holders)
        active += met + own * share(left) - own
    return counted(shared, sum(expert.num_parameters for expert in experts), router, round(active))


def count_token_blocks(base: Decoder, router: GatesRouter, experts: Sequence[FFN]) -> dict[str, int]:
    """Count a mixture whose layers route every token, as `count_parameters` does.

    `active`: in each layer with experts the chosen ones instead of the base's block, which replaces a missing one.
    """
    shared = num_parameters(base)
    held = sum(expert.num_parameters for expert in experts)
    active = shared
    for path in {path for expert in experts for path in expert.blocks}:
        own = num_parameters(base.get_submodule(path))
        sizes = sorted(FFN({path: one.blocks[path]}).num_parameters if path in one.blocks else own for one in experts)
        active += sum(sizes[-router.k :]) - own
    return counted(shared, held, router, active)


def count_models(mixture: ModelMixture, weights: Weights) -> dict[str, int]:
    """Count a mixture of whole models; `experts`: the tensors that they do not share with the base, each once.

    `active`: the models that a row gives a weight, and the base where the row's weights leave something to it. A router
    that reads the base once, from the prompt, adds nothing; one that reads the base before every token adds the base.
    """
    models = [mixture.model(number) for number in range(len(mixture.models))]
    shared = num_parameters(mixture.base)
    held = {weight.data_ptr(): weight.numel() for model in models for weight in model.parameters()}
    left = (1 - weights.double().sum(-1)).abs() > ROUNDING
    shares = torch.cat([(weights > 0).double(), left[:, None].double()], -1) @ mixture.own.double()
    asked = (shares > 0).double().mean(0)
    if mixture.level == "token" and mixture.feature.depth != 0:
        asked[mixture.number_of_base] = 1.0
    active = sum(num_parameters(model) * part for model, part in zip(models, asked.tolist(), strict=True))
    return counted(shared, sum(held.values()) - shared, mixture.router, round(active))


def counted(base: int, experts: int, router: Router, active: int) -> dict[str, int]:
    """Figures of a mixture from those of its parts. `active`: without the router."""
    routed, encoder = router.num_parameters, router.num_encoder_parameters
    return {
        "total": base + experts + routed + encoder,
        "base": base,
        "experts": experts,
        "router": routed,
        **({"encoder": encoder} if encoder else {}),
        "trained": experts + routed,
        "active": active + routed + encoder,
    }


def num_parameters(module: nn.Module) -> int:
    """The number of values in a module's tensors, each tensor once."""
    return sum(weight.numel() for weight in module.parameters())


def share(rows: Bool[Tensor, " n"]) -> float:
    return rows.double().mean().item()


def asleep(decoder: Decoder) -> int:
    """Parameters of a base that a token does not use: in a sparse base, the experts that are not chosen."""
    return sum(
        num_parameters(experts) * (part.num_experts - part.chosen) // part.num_experts
        for part in slots_of(decoder, SparseFFN).values()
        for experts in slots_of(part, Experts).values()
    )


def awake(decoder: Decoder, adapter: Adapter) -> int:
    """Parameters of an adapter that a token uses: beside sparse experts, the pairs of those that it chose."""
    layers, total = slots_of(decoder, SparseFFN), adapter.num_parameters
    for path, size in adapter.in_experts.items():
        part = layers[path.removesuffix(".experts")]
        total -= size * (part.num_experts - part.chosen) // part.num_experts
    return total
