"""How many parameters a mixture has, how many were trained, and how many answer one request.

Knows nothing about files.
"""

from moesaic.adapters import LowRankLinear
from moesaic.model.mixture import AdapterMixture
from moesaic.routing.routers import TrainedRouter


def count_parameters(mixture: AdapterMixture) -> dict[str, int]:
    """`total` of everything, of which `base`, `router` and `experts`; `active`: base, router and one expert's rank."""
    slots = [module for module in mixture.decoder.modules() if isinstance(module, LowRankLinear)]
    experts = sum(slot.a.numel() + slot.b.numel() for slot in slots)
    one = sum(slot.a[0].numel() + slot.b[0].numel() for slot in slots)
    base = sum(weight.numel() for weight in mixture.decoder.parameters()) - experts
    router = 0
    if isinstance(mixture.router, TrainedRouter):
        router = sum(weight.numel() for weight in mixture.router.parameters())
    return {
        "total": base + experts + router,
        "base": base,
        "experts": experts,
        "router": router,
        "active": base + one + router,
    }
