"""The section about gates of layers, which route every token by itself.

Knows nothing about tensors, or about how gates are made.
"""

from typing import Literal

from moesaic.sections.section import Positive, Section, Whole

Start = Literal["ridge", "means", "hidden", "cheap_embed", "random", "uniform_random"]
Balance = Literal["none", "loss", "sign", "quantiles"]
STRENGTHS: dict[Balance, float] = {"none": 0.0, "loss": 0.01, "sign": 0.01, "quantiles": 0.1}
"""Usual strength of each way to balance."""


class TokenGates(Section):
    """Gates of layers: their values at the start, and their training."""

    start: Start = "ridge"
    """Rows of each gate before training, from training rows of each expert: `ridge` (least squares at the gate's input)
    or `means` (mean states there), mergekit's `hidden` and `cheap_embed`, or `random` and `uniform_random`."""
    steps: Whole | None = None
    """Training steps with base and experts frozen; 0: no training (default: 5% of those of all experts together)."""
    lr: Positive = 1e-2
    """Peak learning rate."""
    balance: Balance = "loss"
    """Way to spread the tokens over the experts of each layer in training: a loss, or a bias of the choice that moves
    by its sign or towards quantiles. Evaluation and export have no such bias."""
    strength: Positive | None = None
    """Weight of the balance loss, rate of the sign, or pace of the quantiles (default: 0.01, 0.01 and 0.1)."""

    def idle(self) -> dict[str, str]:
        """Keys of the training, without one."""
        if self.steps == 0:
            return dict.fromkeys(("lr", "balance", "strength"), "steps: 0 trains nothing")
        return {"strength": "nothing is balanced"} if self.balance == "none" else {}

    @property
    def strong(self) -> float:
        """The strength, or the usual one."""
        return self.strength or STRENGTHS[self.balance]
