"""One training of a part: the paths of its state and its log, its resumption, and the reports of its steps.

Knows nothing about what is trained.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moesaic.files import disk
from moesaic.runs.directory import PartsDir
from moesaic.runs.jobs import Report
from moesaic.runs.signals import heed, mood, stopping
from moesaic.train.checkpoint import Checkpoint
from moesaic.train.loop import Record

Inputs = Mapping[str, Any]
"""Everything that a training depends on, except the seed, as plain data."""


def trial_at(lr: float) -> str:
    """The name of the state and the log of a training that varies only its learning rate."""
    return f"lr-{lr!r}"


@contextmanager
def training(
    run: PartsDir,
    part: Path,
    trial: str,
    inputs: Inputs,
    report: Report,
    before: int = 0,
    origin: Path | None = None,
    first: int = 0,
    leaves: bool = False,
) -> Iterator[tuple[Checkpoint, Record]]:
    """The checkpoint of one training of the part at `part`, and the function that records its steps.

    `before`: the number of steps that were reported for earlier trainings. `origin`, `first`, `leaves`: see Checkpoint.
    Call `drop_logs` first.
    """
    checkpoint = checkpoint_at(run, part, trial, inputs, report.warn, report.note, origin, first, leaves)

    def record(row: dict[str, Any]) -> None:
        if checkpoint.ranks.main:
            checkpoint.log.append(row)
            report.row({**row, "step": row["step"] + before})

    try:
        with mood("patient"):
            yield checkpoint, record
        heed()  # for a signal that arrived in the last step
    finally:
        checkpoint.close()


def refuse_changed(run: PartsDir, part: Path, inputs: Callable[[], Inputs], warn: Callable[[str], None]) -> None:
    """Refuse to resume a half-done training of a part with other settings, before anything is made."""
    for state in sorted(run.states_at(part).glob("lr-*")):
        checkpoint_at(run, part, state.name, inputs(), warn, warn).refuse_changed()  # which reports nothing


def checkpoint_at(
    run: PartsDir,
    part: Path,
    trial: str,
    inputs: Inputs,
    warn: Callable[[str], None],
    note: Callable[[str], None],
    origin: Path | None = None,
    first: int = 0,
    leaves: bool = False,
) -> Checkpoint:
    """The checkpoint of one trial of a part."""
    return Checkpoint(
        at=run.states_at(part) / trial,
        log_at=run.logs_at(part) / f"{trial}.jsonl",
        inputs={"seed": run.seed, **inputs},
        every=run.checkpoint_seconds,
        restart=f"give --restart {run.title(part).name} to begin it anew",
        warn=warn,
        note=note,
        strict=run.strict,
        stopping=stopping,
        heed=heed,
        origin=origin,
        first=first,
        leaves=leaves,
    )


def drop_logs(run: PartsDir, part: Path, trials: Sequence[str]) -> None:
    """Drop the logs of all other trials of a part."""
    for log in run.logs_at(part).glob("lr-*.jsonl"):
        if log.stem not in trials:
            with disk.errors(log):
                disk.unlink(log)
