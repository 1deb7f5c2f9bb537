"""Experts that write: a course on texts, chosen by nats a token of held-out responses.

Knows nothing about labels, nor where experts lie.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from moesaic.adapters import LowRankLinear, attach, detach
from moesaic.data.batches import Schedule, Tokens, pad
from moesaic.model.decoder import Decoder
from moesaic.routing import Gates
from moesaic.stages.courses import Lesson, Made, Plan, adapted, alone, even
from moesaic.stages.workshop import Workshop
from moesaic.train.language import loss_of, mean_nats
from moesaic.weights.adapter import StoredExpert


class TextCourse:
    """How an expert learns to write."""

    def __init__(self, workshop: Workshop, plan: Plan):
        self.workshop, length = workshop, plan.settings.length
        self.train = [workshop.encoded(texts, length) for texts in plan.train.values()]
        self.held_out = held_out(workshop, plan)

    def rows(self) -> dict[str, int]:
        every = [*self.train, self.held_out]
        return {
            "train": sum(map(len, self.train)),
            "validation": len(self.held_out),
            "truncated": sum(row.truncated for rows in every for row in rows),
        }

    def lesson(self, plan: Plan) -> Lesson:
        settings, (decoder, _) = plan.settings, adapted(self.workshop, plan)
        assert isinstance(decoder, Decoder)
        schedule = Schedule(even(self.train), settings.batch, self.workshop.recipe.seed)
        return Lesson(
            {name: p for name, p in decoder.named_parameters() if p.requires_grad},
            lambda step: pad(schedule(step)),
            loss_of(decoder, alone),
            lambda: mean_nats(decoder, alone, self.held_out, settings.batch),
            schedule.names,
        )

    def made(self, plan: Plan, state: Mapping[str, Tensor], best: float) -> Made:
        decoder, fresh = adapted(self.workshop, plan)
        decoder.load_state_dict(state, strict=False)
        return Made(detach(decoder, fresh), None, {"validation_nats": best}, f"validation {best:.3f} nats a token")

    def logged(self, row: dict[str, Any]) -> dict[str, Any]:
        return row

    def outcome(self, best: float) -> float:
        return best


def held_out(workshop: Workshop, plan: Plan) -> list[Tokens]:
    """The rows that a contender is chosen by."""
    return [row for texts in plan.validation.values() for row in workshop.encoded(texts, plan.settings.length)]


def verified(workshop: Workshop, plan: Plan, stored: StoredExpert, refuse: Any) -> dict[str, Any]:
    """The validation nats of an expert that was read back, beside the base's; `refuse` where they differ."""
    decoder = workshop.fresh_base().decoder
    attach(decoder, [stored.lora])
    rows = held_out(workshop, plan)
    found = mean_nats(decoder, alone, rows, plan.settings.batch)
    off = mean_nats(decoder, lambda n: Gates.one(-1, n, 1, torch.zeros(1)), rows, plan.settings.batch)
    said = stored.manifest["metrics"]["validation_nats"]
    untouched = [
        path for path, module in decoder.named_modules() if isinstance(module, LowRankLinear) and not module.b.any()
    ]
    if abs(found - said) > 1e-4 * said or untouched:
        got = f"{found:.6f}" + (f", and {untouched[0]} changes nothing" if untouched else "")
        refuse("metrics.validation_nats", f"{said:.6f}", got)
    return {"validation_nats": found, "manifest": said, "base": off, "gain": off - found}
