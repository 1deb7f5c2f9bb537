"""How many parameters a mixture has, how many were trained, and how many answer one request.

Knows nothing about files.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from moesaic.adapters import Adapter, LowRankLinear
from moesaic.model.decoder import Decoder
from moesaic.model.mixture import AdapterMixture
from moesaic.model.sentences import SentenceRouter
from moesaic.nn import SparseFFN
from moesaic.routing.routers import TrainedRouter


def count_parameters(
    mixture: AdapterMixture, experts: Sequence[Adapter], weights: Float[Tensor, "n e"]
) -> dict[str, int]:
    """`total`, of which `base`, `experts` and `router`; `trained`: experts and router. An encoder that the router reads
    is counted as `encoder`.

    `active`: the base but for what is `asleep` in it, the router with its encoder, and the experts that a request
    chose, on average over the decisions `weights`. An expert counts as it was trained and is stored: a tensor train by
    its cores.
    """
    adapted = {
        id(weight)
        for slot in mixture.decoder.modules()
        if isinstance(slot, LowRankLinear)
        for weight in (slot.a, slot.b)
    }
    base = sum(weight.numel() for weight in mixture.decoder.parameters() if id(weight) not in adapted)
    router, encoder = mixture.router, 0
    if isinstance(router, SentenceRouter):
        encoder = sum(w.numel() for w in router.sentences.parameters())
        router = router.router
    routed = sum(w.numel() for w in router.parameters()) if isinstance(router, TrainedRouter) else 0
    sizes = [expert.num_parameters for expert in experts]
    chosen = sum(size * share for size, share in zip(sizes, (weights > 0).double().mean(0).tolist(), strict=True))
    return {
        "total": base + sum(sizes) + routed + encoder,
        "base": base,
        "experts": sum(sizes),
        "router": routed,
        **({"encoder": encoder} if encoder else {}),
        "trained": sum(sizes) + routed,
        "active": base - asleep(mixture.decoder) + routed + encoder + round(chosen),
    }


def asleep(decoder: Decoder) -> int:
    """Parameters of a base that a token does not meet: of a sparse one, the experts that are not among the chosen."""
    sparse = [part for part in decoder.modules() if isinstance(part, SparseFFN)]
    sizes = [sum(weight.numel() for weight in part.experts.parameters()) // len(part.experts) for part in sparse]
    return sum(size * (len(part.experts) - part.chosen) for size, part in zip(sizes, sparse, strict=True))
