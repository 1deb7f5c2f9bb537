"""One cell of a study: an arm trained at one depth with one seed and one rate, and judged at the end of every decay.

A cell is one training with a warm-up and a constant rate, from which a decay to rate 0 branches off several times.
Knows nothing about other cells.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moesaic.config import DecoderConfig, sized
from moesaic.data.batches import Packed
from moesaic.errors import NonFiniteError
from moesaic.files import disk, read_jsonl, write_manifest
from moesaic.files.plain import encoded
from moesaic.lab.arms import ARMS
from moesaic.lab.corpus import Corpus, open_corpus
from moesaic.lab.directory import StudyDir
from moesaic.lab.objective import Objective
from moesaic.lab.study import Study, StudyTrain
from moesaic.model.decoder import Decoder, initialise
from moesaic.runs.checkpoints import training, trial_at
from moesaic.runs.jobs import Report
from moesaic.runs.part import Part, Work
from moesaic.tensors.tensors import write_tensors
from moesaic.train.loop import fit
from moesaic.train.states import TENSORS

KIND, SCORES, LOG = "cell", "scores.safetensors", "steps.jsonl"


@dataclass(frozen=True)
class Cell:
    """An arm, a depth, a seed and a rate. `swept`: a trial of a sweep, which is shorter and has one decay."""

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
    """A piece of a cell's training, from step `first` to step `last`, at a constant rate or with one that decays to 0.

    `begins_with`: the segment whose end it continues.
    """

    name: str
    first: int
    last: int
    begins_with: str | None
    decays: bool


def segments(settings: StudyTrain) -> list[Segment]:
    """The pieces of a cell's training in their order: constant up to the start of each decay, and the decays."""
    found, stable, reached = list[Segment](), None, 0
    for number, end in enumerate(settings.ends):
        start = min(round(end * (1 - settings.decay)), end - 1)
        if start > reached:
            found.append(Segment(f"stable-{number}", reached, start, stable, decays=False))
            stable, reached = f"stable-{number}", start
        found.append(Segment(f"decay-{number}", start, end, stable, decays=True))
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
        own["balance"] = ARMS[study.arm_of(cell.arm)].balance
        return {**own, "redraw": study.arms[cell.arm].redraw, "train": train, "rows": study.rows, "corpus": self.corpus}

    def work(self) -> Work:
        return partial(train_cell, self.run, self.cell, self.inputs(), self.key)


def train_cell(run: StudyDir, cell: Cell, inputs: Mapping[str, Any], key: str, report: Report) -> None:
    """Train a cell, judge it after every decay, and publish its scores and its log. A trial may diverge, a cell not."""
    settings, at = cell.settings(run.study), run.cell_at(cell.name)
    corpus = report.cached(open_corpus, run.corpus_at, settings.length, run.study.rows)
    packed = Packed(corpus.shards.train, settings.length, settings.batch, cell.seed, settings.apart)
    report.begin(sum(one.last - one.first for one in segments(settings)))
    try:
        decays, scores = trained(run, cell, corpus, packed, inputs, report)
    except NonFiniteError as error:
        if not cell.swept:
            raise
        report.warn(f"diverged: {error}")
        decays, scores = [], {}
    rows = [*logged(run, cell, settings.accumulate * packed.batch * settings.length)]

    def write(folder: Path) -> None:
        disk.create(folder / LOG, b"".join(encoded(row) for row in rows))
        write_tensors(folder / SCORES, scores)
        facts = {"kind": KIND, "stage_key": key, "cell": vars(cell), "decays": decays}
        write_manifest(folder, {**facts, "seconds": sum(row["scored"] / row["rate"] for row in rows)})

    run.publish_version(at, write, sum(one.numel() * one.element_size() for one in scores.values()))
    run.forget(at)
    disk.remove(run.logs_at(at))
    report.end(f"validation {decays[-1]['validation']:.3f} nats a token" if decays else "diverged")


def trained(
    run: StudyDir, cell: Cell, corpus: Corpus, packed: Packed, inputs: Mapping[str, Any], report: Report
) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Train all segments of a cell; the facts of each decay, and its nats on every unseen document."""
    settings, decoder, at = cell.settings(run.study), begun(run.study, cell), run.cell_at(cell.name)
    parameters, objective = (
        dict(decoder.named_parameters()),
        Objective(decoder, ARMS[run.study.arm_of(cell.arm)].balance),
    )
    batches = objective.batches(packed, settings.accumulate)
    decays, nats, done = list[dict[str, Any]](), list[np.ndarray](), 0

    def validation() -> float:
        found, counts = corpus.choosing.scored(objective.rows, settings.batch)
        return float(found.sum() / counts.sum())

    for piece in segments(settings):
        origin = run.states_at(at) / trial_of(cell, piece.begins_with) / TENSORS if piece.begins_with else None
        how = settings.to(piece.last, cell.rate, decays=piece.decays)
        trial, before, leaves = trial_of(cell, piece.name), done - piece.first, not piece.decays
        with training(run, at, trial, inputs, report, before, origin, piece.first, leaves) as (keeper, record):
            validate = validation if piece.decays else unjudged
            shared = (how, cell.rate, record, cell.seed, keeper, packed.names)
            found = fit(parameters, batches, objective, validate, *shared, after=objective.after)
        done += piece.last - piece.first
        if piece.decays:
            decoder.load_state_dict(found.state, strict=False)
            own, counts = corpus.judging.scored(objective.rows, settings.batch)
            tokens = piece.last * settings.accumulate * packed.batch * settings.length
            facts = {"steps": piece.last, "tokens": tokens, "epochs": packed.epochs(piece.last * settings.accumulate)}
            decays.append({**facts, "validation": found.best, "nats": float(own.sum()), "scored": int(counts.sum())})
            nats.append(own)
    return decays, {"nats": torch.from_numpy(np.stack(nats))}


def begun(study: Study, cell: Cell) -> Decoder:
    """The decoder of a cell before its training. Weights that its arm has in common with the dense one are equal.

    The deviation of the weights follows from the width: small models with that of large ones take long to begin.
    """
    seed = cell.seed + study.arms[cell.arm].redraw
    decoder, dense = (
        initialise(Decoder(config), torch.Generator().manual_seed(seed), config.hidden_size**-0.5)
        for config in (cell.config(study), dense_config(study, cell.depth))
    )
    common = dict(dense.named_parameters())
    with torch.no_grad():
        for name, weight in decoder.named_parameters():
            if name in common and common[name].shape == weight.shape:
                weight.copy_(common[name])
    return decoder


def trial_of(cell: Cell, segment: str) -> str:
    """The name of the state and the log of one segment."""
    return f"{trial_at(cell.rate)}-{segment}"


def logged(run: StudyDir, cell: Cell, tokens: int) -> Iterator[dict[str, Any]]:
    """The steps of a cell, each with the tokens and the seconds up to it on the way of its segment.

    `tokens`: those of a step.
    """
    clocks = dict[str | None, float]()
    for piece in segments(cell.settings(run.study)):
        at = run.logs_at(run.cell_at(cell.name)) / f"{trial_of(cell, piece.name)}.jsonl"
        clock = clocks.get(piece.begins_with, 0.0)
        for _, row in read_jsonl(at) if at.is_file() else ():
            clock += row["scored"] / row["rate"]
            yield {"segment": piece.name, **row, "tokens": row["step"] * tokens, "seconds": round(clock, 3)}
        clocks[piece.name] = clock


def unjudged() -> float:
    return 0.0
