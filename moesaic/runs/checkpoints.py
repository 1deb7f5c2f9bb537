"""One training of a run: where its state and its log lie, how it is taken up again and who hears of it.

Knows nothing about what is trained.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moesaic.files import disk
from moesaic.runs.jobs import Report
from moesaic.runs.signals import heed, mood, stopping
from moesaic.runs.workshop import Workshop
from moesaic.train.checkpoint import Checkpoint
from moesaic.train.loop import Record

Trial = float | str
"""One of the trainings of a part: its learning rate, or where more is tried a name that begins with it."""


@contextmanager
def training(
    workshop: Workshop, part: Path, trial: Trial, inputs: Mapping[str, Any], report: Report, before: int = 0
) -> Iterator[tuple[Checkpoint, Record]]:
    """The keeper of one training of what will lie at `part`, and where its steps are recorded.

    `inputs`: what it depends on beside the seed, as plain data. `before`: steps of others that the report has told of.
    """
    checkpoint = checkpoint_at(workshop, part, named(trial), inputs, report.warn)

    def record(row: dict[str, Any]) -> None:
        checkpoint.log.append(row)
        report.row({**row, "step": row["step"] + before})

    try:
        with mood("patient"):
            yield checkpoint, record
        heed()  # a signal in the last step has waited until it was saved
    finally:
        checkpoint.close()


def refuse_changed(workshop: Workshop, part: Path, inputs: Mapping[str, Any], warn: Callable[[str], None]) -> None:
    """Refuse to go on with a half-done training of a part with other settings, before anything is made."""
    for state in sorted(states_at(workshop, part).glob("lr-*")):
        checkpoint_at(workshop, part, state.name, inputs, warn).refuse_changed()


def checkpoint_at(
    workshop: Workshop, part: Path, rate: str, inputs: Mapping[str, Any], warn: Callable[[str], None]
) -> Checkpoint:
    """The keeper of a part's training at one learning rate."""
    return Checkpoint(
        at=states_at(workshop, part) / rate,
        log_at=logs_at(workshop, part) / f"{rate}.jsonl",
        inputs={"seed": workshop.recipe.seed, **inputs},
        every=workshop.recipe.checkpoint_seconds,
        restart=f"start it anew with --restart {place_of(workshop, part).name}",
        warn=warn,
        strict=workshop.strict,
        stopping=stopping,
        heed=heed,
    )


def place_of(workshop: Workshop, part: Path) -> Path:
    """The part of the run directory that belongs to a part, as a relative path: `experts/math`, `router`."""
    place = part.relative_to(workshop.root)
    return place.parent if place.name == "best" else place


def states_at(workshop: Workshop, part: Path) -> Path:
    """Where the states of a part's trainings are kept, as long as it is not finished."""
    return workshop.root / "checkpoints" / place_of(workshop, part)


def logs_at(workshop: Workshop, part: Path) -> Path:
    """Where the steps of a part's trainings are logged, a file for each learning rate."""
    return workshop.root / "metrics" / place_of(workshop, part)


def forget(workshop: Workshop, part: Path) -> None:
    """Drop the states of a part's trainings: it is finished, or shall begin anew."""
    disk.remove(states_at(workshop, part))


def named(trial: Trial) -> str:
    """What state and log of a trial are called."""
    return trial if isinstance(trial, str) else f"lr-{trial!r}"


def drop_logs(workshop: Workshop, part: Path, trials: Sequence[Trial]) -> None:
    """Drop what was logged of trials that are not made any more."""
    for log in logs_at(workshop, part).glob("lr-*.jsonl"):
        if log.name not in {f"{named(trial)}.jsonl" for trial in trials}:
            with disk.errors(log):
                disk.unlink(log)
