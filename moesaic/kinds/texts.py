"""Experts that write: a course on texts, chosen by nats a token of held-out responses.

Knows nothing about labels, nor where experts lie.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from moesaic.data.batches import Schedule, Tokens, pad
from moesaic.kinds.courses import Lesson, Made, Plan, even
from moesaic.kinds.making import begin, lone, untouched
from moesaic.runs.workshop import Workshop
from moesaic.train.language import loss_of, mean_nats, plain


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
        settings, begun = plan.settings, begin(self.workshop, plan)
        schedule = Schedule(even(self.train), settings.batch, self.workshop.recipe.seed)
        return Lesson(
            {name: p for name, p in begun.decoder.named_parameters() if p.requires_grad},
            lambda step: pad(schedule(step)),
            loss_of(begun.decoder, begun.gates),
            lambda: mean_nats(begun.decoder, begun.gates, self.held_out, settings.batch),
            schedule.names,
        )

    def made(self, plan: Plan, state: Mapping[str, Tensor], best: float) -> Made:
        begun = begin(self.workshop, plan)
        begun.decoder.load_state_dict(state, strict=False)
        return Made(begun.taken(), None, {"validation_nats": best}, f"validation {best:.3f} nats a token")

    def logged(self, row: dict[str, Any]) -> dict[str, Any]:
        return row

    def outcome(self, best: float) -> float:
        return best


def held_out(workshop: Workshop, plan: Plan) -> list[Tokens]:
    """The rows that a contender is chosen by."""
    return [row for texts in plan.validation.values() for row in workshop.encoded(texts, plan.settings.length)]


def verified(workshop: Workshop, plan: Plan, folder: Path, refuse: Any) -> dict[str, Any]:
    """The validation nats of an expert that is read back, beside the base's; `refuse` where they differ."""
    read, rows = lone(workshop, plan, folder), held_out(workshop, plan)
    found = mean_nats(read.decoder, read.gates, rows, plan.settings.batch)
    off = mean_nats(workshop.base.decoder, plain, rows, plan.settings.batch)
    said, idle = read.stored.manifest["metrics"]["validation_nats"], untouched(workshop, read)
    if abs(found - said) > 1e-4 * said or idle:
        got = f"{found:.6f}" + (f", and {idle} changes nothing" if idle else "")
        refuse("metrics.validation_nats", f"{said:.6f}", got)
    return {"validation_nats": found, "manifest": said, "base": off, "gain": off - found}
