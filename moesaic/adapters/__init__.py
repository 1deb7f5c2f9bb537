"""Adapters: trained changes to the matrices of a frozen base, filling the linear slot by wrapping it."""

from moesaic.adapters.factors import Factors
from moesaic.adapters.lora import LoRA, LowRankLinear, attach, merge, standing
from moesaic.adapters.published import published_ttlora
from moesaic.adapters.tensor_train import Cores, TensorTrain
from moesaic.adapters.training import Adapter, Design, adapt, detach

__all__ = [
    "Adapter",
    "Cores",
    "Design",
    "Factors",
    "LoRA",
    "LowRankLinear",
    "TensorTrain",
    "adapt",
    "attach",
    "detach",
    "merge",
    "published_ttlora",
    "standing",
]
