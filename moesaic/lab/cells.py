"""One cell of a study: an arm trained at one depth with one seed and one rate, and judged at every budget.

A cell is one training with a warm-up and a constant rate, from which a decay to rate 0 branches off for each budget.
Knows nothing about other cells.
"""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from moesaic.config import DecoderConfig, sized
from moesaic.data.batches import Batch, Packed
from moesaic.errors import NonFiniteError
from moesaic.files import disk, encoded, read_jsonl, read_manifest, write_manifest
from moesaic.lab.arms import ARMS
from moesaic.lab.corpus import Corpus, open_corpus
from moesaic.lab.directory import StudyDir
from moesaic.lab.study import Study, StudyTrain
from moesaic.model.decoder import Decoder, initialise
from moesaic.runs.checkpoints import trial_at, training
from moesaic.runs.jobs import Report
from moesaic.runs.part import Part, Work
from moesaic.tensors.tensors import read_tensors, write_tensors
from moesaic.train.checkpoint import TENSORS
from moesaic.train.loop import fit

KIND, SCORES, LOG = "cell", "scores.safetensors", "steps.jsonl"


@dataclass(frozen=True)
class Cell:
    """An arm, a depth, a seed and a rate. `swept`: a trial of a sweep, which is shorter and has one budget."""

    arm: str
    depth: int
    seed: int
    rate: float
    swept: bool = False

    @property
    def name(self) -> str:
        return f"{self.arm}-{self.depth}-seed-{self.seed}-{trial_at(self.rate)}"

    def settings(self, study: Study) -> StudyTrain:
        if not self.swept:
            return study.train
        steps = max(1, round(study.sweep.share * study.train.steps))
        return study.train.model_copy(update={"steps": steps, "decays": [1.0]})

    def config(self, study: Study) -> DecoderConfig:
        return ARMS[study.arm_of(self.arm)].changes(dense_config(study, self.depth))


def dense_config(study: Study, depth: int) -> DecoderConfig:
    return replace(sized(study.size, study.vocab_size), num_layers=depth)


@dataclass(frozen=True)
class Segment:
    """A piece of a cell's training, from step `first` to step `last`. `begins_with`: the segment whose end it continues;
    `budget`: the number of the budget that it decays to, None at a constant rate.
    """

    name: str
    first: int
    last: int
    begins_with: str | None
    budget: int | None


def segments(settings: StudyTrain) -> list[Segment]:
    """The pieces of a cell's training in their order: constant up to the start of each decay, and the decays."""
    found, stable, reached = list[Segment](), None, 0
    for number, end in enumerate(settings.ends):
        start = round(end * (1 - settings.decay))
        if start > reached:
            found.append(Segment(f"stable-{number}", reached, start, stable, None))
            stable, reached = f"stable-{number}", start
        found.append(Segment(f"decay-{number}", start, end, stable, number))
    return found


class CellPart(Part):
    """A cell of a study. `corpus`: the key of the corpus that it is trained on."""

    run: StudyDir
    stage = "cell"

    def __init__(self, run: StudyDir, cell: Cell, corpus: str):
        super().__init__(run, run.cell_at(cell.name))
        self.cell, self.corpus, self.name = cell, corpus, cell.name

    @property
    def steps(self) -> int:
        """Steps, weighed by the layers, so that the longest cell begins first."""
        return sum(one.last - one.first for one in segments(self.cell.settings(self.run.study))) * self.cell.depth

    def needs(self) -> tuple[Path, ...]:
        return (self.run.corpus_at,)

    def inputs(self) -> dict[str, Any]:
        cell, study = self.cell, self.run.study
        own = {"arm": study.arm_of(cell.arm), "wiring": cell.config(study).wiring, "seed": cell.seed, "rate": cell.rate}
        train = cell.settings(study).model_dump(mode="json")
        return {**own, "redraw": study.arms[cell.arm].redraw, "train": train, "rows": study.rows, "corpus": self.corpus}

    def work(self) -> Work:
        return partial(train_cell, self.run, self.cell, self.inputs(), self.key)


def train_cell(run: StudyDir, cell: Cell, inputs: Mapping[str, Any], key: str, report: Report) -> None:
    """Train a cell, judge it at every budget, and publish its scores and its log. A trial may diverge, a cell not."""
    study, settings = run.study, cell.settings(run.study)
    corpus = report.cached(open_corpus, run.corpus_at, settings.length, study.rows)
    pieces = segments(settings)
    report.begin(sum(one.last - one.first for one in pieces))
    try:
        budgets, scores = trained(run, cell, corpus, inputs, report)
    except NonFiniteError as error:
        if not cell.swept:
            raise
        report.warn(f"diverged: {error}")
        budgets, scores = [], {}
    at = run.cell_at(cell.name)
    rows = [row for piece in pieces for row in logged(run, cell, piece)]
    speed = statistics.median(row["rate"] for row in rows) if rows else 0.0
    facts = {"kind": KIND, "stage_key": key, "cell": vars(cell), "budgets": budgets, "speed": speed}

    def write(folder: Path) -> None:
        disk.create(folder / LOG, b"".join(encoded(row) for row in rows))
        write_tensors(folder / SCORES, scores)
        write_manifest(folder, facts)

    run.publish_version(at, write, 1 << 20)
    run.forget(at)
    report.end(f"validation {budgets[-1]['validation']:.3f} nats a token" if budgets else "diverged")


def trained(
    run: StudyDir, cell: Cell, corpus: Corpus, inputs: Mapping[str, Any], report: Report
) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Train all segments of a cell; the facts of each budget, and its nats on the unseen documents."""
    settings, decoder = cell.settings(run.study), begun(run.study, cell)
    packed = Packed(corpus.shards.train, settings.length, settings.batch, cell.seed, settings.apart)
    per_step = packed.batch * settings.length * settings.accumulate
    at, parameters, done = run.cell_at(cell.name), dict(decoder.named_parameters()), 0
    budgets, nats = list[dict[str, Any]](), list[np.ndarray]()

    def validate() -> float:
        found, counts = corpus.choosing.scored(logits_of(decoder), settings.batch)
        return float(found.sum() / counts.sum())

    for piece in segments(settings):
        origin = run.states_at(at) / trial_of(cell, piece.begins_with) / TENSORS if piece.begins_with else None
        judged = piece.budget is not None
        own = inputs_of(inputs, piece)
        how = settings.to(piece.last, cell.rate, decays=judged)
        with training(
            run, at, trial_of(cell, piece.name), own, report, done - piece.first, origin, piece.first, leaves=not judged
        ) as (keeper, record):
            loss = loss_of(decoder)
            found = fit(
                *(parameters, packed, loss, validate if judged else unjudged, how, cell.rate, record),
                **{"seed": cell.seed, "checkpoint": keeper, "names": packed.names},
            )
        done += piece.last - piece.first
        if judged:
            decoder.load_state_dict(found.state, strict=False)
            own_nats, counts = corpus.judging.scored(logits_of(decoder), settings.batch)
            nats.append(own_nats)
            budgets.append(
                {
                    **{"steps": piece.last, "tokens": piece.last * per_step, "validation": found.best},
                    **{"nats": float(own_nats.sum()), "scored": int(counts.sum())},
                }
            )
    return budgets, {"nats": torch.from_numpy(np.stack(nats))}
