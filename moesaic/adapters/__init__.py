"""Adapters: trained changes to the matrices of a frozen base, filling the linear slot by wrapping it."""

from moesaic.adapters.lora import LoRA, LowRankLinear, attach, merge

__all__ = ["LoRA", "LowRankLinear", "attach", "merge"]
