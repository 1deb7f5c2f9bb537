"""Adapters: trained changes to the matrices of a frozen base, filling the linear slot by wrapping it."""

from moesaic.adapters.design import Adapter, Design, LoRADesign, TrainDesign
from moesaic.adapters.factors import Factors
from moesaic.adapters.lora import LoRA, LowRankLinear, attach, merge
from moesaic.adapters.published import published_ttlora
from moesaic.adapters.tensor_train import Cores, TensorTrain

__all__ = [
    "Adapter",
    "Cores",
    "Design",
    "Factors",
    "LoRA",
    "LoRADesign",
    "LowRankLinear",
    "TensorTrain",
    "TrainDesign",
    "attach",
    "merge",
    "published_ttlora",
]
