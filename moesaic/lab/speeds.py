"""How fast each arm trains: a few steps of all arms in turn, by the time of the processor.

Cells are trained side by side with others, at moments that differ, so their own times say little about arms. Knows
nothing about scores.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from moesaic.data.batches import Packed
from moesaic.files import read_manifest, write_manifest
from moesaic.lab.arms import ARMS
from moesaic.lab.cells import Cell, begun, unjudged
from moesaic.lab.corpus import open_corpus
from moesaic.lab.directory import StudyDir
from moesaic.lab.objective import Objective
from moesaic.runs.jobs import Report
from moesaic.runs.part import Part, Work
from moesaic.train.loop import fit

KIND = "speeds"
ROUNDS, STEPS = 5, 4
"""Turns of every arm at every depth, and steps of a turn; the first step of a turn does not count."""
RATE = 1e-4

Speeds = Mapping[str, float]
"""Name of an arm and a depth, as in `moe-2` -> tokens per second."""


class SpeedsPart(Part):
    """The speeds of some arms at their depths, one cell of each."""

    run: StudyDir
    name = stage = "speeds"

    def __init__(self, run: StudyDir, cells: Sequence[Cell], corpus: str):
        super().__init__(run, run.root / "speeds")
        self.cells, self.corpus = cells, corpus

    def needs(self) -> tuple[Path, ...]:
        return (self.run.corpus_at,)

    def inputs(self) -> dict[str, Any]:
        train = self.run.study.train
        wirings = {key_of(cell): cell.config(self.run.study).wiring for cell in self.cells}
        rows = {"batch": train.batch, "length": train.length, "accumulate": train.accumulate, "apart": train.apart}
        return {"wirings": wirings, "corpus": self.corpus, **rows}

    def work(self) -> Work:
        return partial(measure, self.run, tuple(self.cells), self.key)

    def read(self) -> Speeds:
        found: dict[str, float] = read_manifest(self.at, KIND)["speeds"]
        return found


def key_of(cell: Cell) -> str:
    return f"{cell.arm}-{cell.depth}"


def measure(run: StudyDir, cells: Sequence[Cell], key: str, report: Report) -> None:
    """Train all arms in turn for a few steps, and publish the median speed of each."""
    settings = run.study.train
    corpus = report.cached(open_corpus, run.corpus_at, settings.length, run.study.rows)
    seconds: dict[str, list[float]] = {key_of(cell): [] for cell in cells}
    report.begin(ROUNDS * len(cells))
    for turn in range(ROUNDS):
        for number, cell in enumerate(cells):
            packed = Packed(corpus.shards.train, settings.length, settings.batch, turn, settings.apart)
            seconds[key_of(cell)] += steps_of(run, cell, packed)
            report.row({"step": turn * len(cells) + number + 1})
    tokens = packed.batch * settings.length * settings.accumulate
    speeds = {name: tokens / statistics.median(some) for name, some in seconds.items()}
    facts = {"kind": KIND, "stage_key": key, "speeds": speeds}
    run.publish_version(run.root / "speeds", lambda folder: write_manifest(folder, facts), 0)
    report.end("done")


def steps_of(run: StudyDir, cell: Cell, packed: Packed) -> list[float]:
    """The time of the processor for each step of a turn but the first."""
    settings, decoder, stamps = run.study.train, begun(run.study, cell), list[float]()
    objective = Objective(decoder, ARMS[run.study.arm_of(cell.arm)].balance)
    batches, parameters = objective.batches(packed, settings.accumulate), dict(decoder.named_parameters())
    how = settings.to(STEPS, RATE, decays=False)

    def stamp(row: dict[str, Any]) -> None:
        stamps.append(time.process_time())

    fit(parameters, batches, objective, unjudged, how, RATE, stamp, after=objective.after)
    return [after - before for before, after in pairwise(stamps)]
