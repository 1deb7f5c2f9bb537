"""The result of a study: every figure of its page, made from its cells, and files of losses, times and perplexities.

Knows nothing about how cells are trained.
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from moesaic.files import disk, read_jsonl, read_manifest, write_json, write_manifest
from moesaic.files.plain import encoded
from moesaic.lab.arms import ARMS
from moesaic.lab.cells import LOG, SCORES, Cell, CellPart
from moesaic.lab.corpus import Corpus, open_corpus
from moesaic.lab.costs import Costs, costs_of
from moesaic.lab.directory import StudyDir
from moesaic.lab.matching import MATCHINGS, Found, Measured, matched
from moesaic.lab.paired import LEVEL, Bytes, bits_per_byte, compare
from moesaic.lab.speeds import SpeedsPart, key_of
from moesaic.lab.sweep import Tried, best, interior
from moesaic.lab.wording import listed, outcome, sentence
from moesaic.report.charts import smoothed
from moesaic.report.studies import STUDY, write_study
from moesaic.runs.jobs import Report
from moesaic.runs.machine import machine
from moesaic.runs.part import Part
from moesaic.tensors.tensors import read_tensors

KIND = "study"
LOSSES, TIMES, PERPLEXITIES = "losses.jsonl", "times.jsonl", "perplexities.jsonl"
POINTS = 200
"""Points of a curve on the page; the files have every step."""
LATE = 0.1
"""Share of the steps, at the end of a training, that tells how even the load of experts became."""
MOST_EPOCHS = 4.0

Sweeps = Mapping[tuple[str, int], Tried]
"""Arm and depth -> the validation loss of every rate that was tried."""


@dataclass(frozen=True)
class Finished:
    """A cell on disk: its decays, its nats on every unseen document at each of them, and its steps."""

    cell: Cell
    decays: list[dict[str, Any]]
    nats: Float[np.ndarray, "decays documents"]
    rows: list[dict[str, Any]]

    @staticmethod
    def read(part: CellPart) -> "Finished":
        rows = [row for _, row in read_jsonl(part.at / LOG)]
        nats = read_tensors(part.at / SCORES)["nats"].numpy()
        return Finished(part.cell, read_manifest(part.at)["decays"], nats, rows)

    @property
    def speed(self) -> float:
        """Tokens per second: the median of all steps."""
        tokens = self.rows[0]["tokens"] / self.rows[0]["step"]
        return statistics.median(tokens * row["rate"] / row["scored"] for row in self.rows)

    @property
    def way(self) -> list[dict[str, Any]]:
        """The steps up to the last decay."""
        end = self.rows[-1]["segment"]
        first = next(row["step"] for row in self.rows if row["segment"] == end)
        stable = [row for row in self.rows if row["segment"].startswith("stable") and row["step"] < first]
        return [*stable, *(row for row in self.rows if row["segment"] == end)]

    def seconds(self, steps: int) -> float:
        """Time up to the end of a decay."""
        return next(row["seconds"] for row in self.rows if row["step"] == steps and row["segment"].startswith("decay"))


@dataclass(frozen=True)
class Depth:
    """The cells of an arm at one depth, one for each seed. `speed`: tokens per second."""

    costs: Costs
    speed: float
    cells: Sequence[Finished]

    @property
    def measured(self) -> Measured:
        nats = np.stack([cell.nats for cell in self.cells], 1)
        tokens = [decay["tokens"] for decay in self.cells[0].decays]
        return Measured(self.costs.parameters, self.costs.trained, self.costs.flops, self.speed, tokens, nats)


Arms = Mapping[str, Mapping[int, Depth]]


class ResultPart(Part):
    """The figures, files and page of a study."""

    run: StudyDir
    name = stage = "result"

    def __init__(
        self,
        run: StudyDir,
        cells: Sequence[CellPart],
        trials: Sequence[CellPart],
        sweeps: Sweeps,
        speeds: SpeedsPart,
    ):
        super().__init__(run, run.result_at)
        self.cells, self.trials, self.sweeps, self.speeds = cells, trials, sweeps, speeds

    def needs(self) -> tuple[Path, ...]:
        return (*(part.at for part in self.cells), self.speeds.at)

    def inputs(self) -> dict[str, Any]:
        tried = [[*key, sorted((rate, str(loss)) for rate, loss in some.items())] for key, some in self.sweeps.items()]
        made = {"cells": [part.key for part in self.cells], "speeds": self.run.identity(self.speeds.at)}
        return {**made, "sweeps": tried, "against": self.run.study.reference}

    def make(self, report: Report) -> None:
        """Read all cells, and publish their figures, files and page."""
        study = self.run.study
        corpus = open_corpus(self.run.corpus_at, study.train.length, study.rows)
        speeds, arms = self.speeds.read(), dict[str, dict[int, Depth]]()
        for name in study.arms:
            for depth in study.depths_of(name):
                parts = [part for part in self.cells if (part.cell.arm, part.cell.depth) == (name, depth)]
                costs = costs_of(parts[0].cell.config(study), study.train.length)
                speed = speeds[key_of(parts[0].cell)]
                arms.setdefault(name, {})[depth] = Depth(costs, speed, [Finished.read(part) for part in parts])
        found = self.figures(corpus, arms)
        files = {LOSSES: losses(arms), TIMES: times(arms), PERPLEXITIES: perplexities(arms, corpus.judging.bytes)}

        def write(folder: Path) -> None:
            write_json(folder / STUDY, found)
            for name, rows in files.items():
                disk.create(folder / name, b"".join(map(encoded, rows)))
            write_study(folder)
            write_manifest(folder, {"kind": KIND, "stage_key": self.key})

        self.run.publish_version(self.at, write, 1 << 20)

    def figures(self, corpus: Corpus, arms: Arms) -> dict[str, Any]:
        """Everything that the page shows."""
        study, size = self.run.study, corpus.judging.bytes
        measured = {name: {depth: one.measured for depth, one in depths.items()} for name, depths in arms.items()}
        others = [name for name in arms if name != study.reference]
        found = {
            key: {name: matched(matching, measured[name], measured[study.reference], size) for name in others}
            for key, matching in MATCHINGS.items()
        }
        last = next(iter(arms[study.reference].values())).cells[0].decays[-1]
        sweeps = [
            {
                **{"arm": arm, "depth": depth, "best": best(tried), "interior": interior(tried)},
                "tried": [[rate, tried[rate] if math.isfinite(tried[rate]) else None] for rate in sorted(tried)],
            }
            for (arm, depth), tried in self.sweeps.items()
        ]
        first, *reasons = [sentence(key, study.reference, some) for key, some in found.items()]
        return {
            **{"name": study.name, "seeds": study.drawn, "sweep_seed": study.sweep_seed, "against": study.reference},
            **{"level": LEVEL, "depths": study.every_depth, "tokens": last["tokens"], "epochs": last["epochs"]},
            "corpus": told(corpus),
            "matchings": {key: {"title": one.title, "words": one.words} for key, one in MATCHINGS.items()},
            "arms": {
                name: {
                    **{"what": ARMS[study.arm_of(name)].what, "redraw": study.arms[name].redraw},
                    "depths": [figures_of(depth, one, size) for depth, one in depths.items()],
                }
                for name, depths in arms.items()
            },
            "sweeps": sweeps,
            "comparisons": [row_of(key, name, one) for key, some in found.items() for name, one in some.items()],
            "verdict": {"sentence": first, "reasons": [*reasons, *cautions(sweeps, last["epochs"])]},
            "thread_seconds": self.thread_seconds(),
            "machine": machine(),
        }

    def thread_seconds(self) -> float:
        """Time of all trainings of the study, trials included."""
        return round(sum(read_manifest(part.at, verify=False)["seconds"] for part in (*self.trials, *self.cells)), 1)


def told(corpus: Corpus) -> dict[str, Any]:
    lengths = corpus.shards.train.lengths
    uses = {"choosing": corpus.choosing, "judged": corpus.judging}
    unseen = {use: {"texts": len(some.bytes), "bytes": int(some.bytes.sum())} for use, some in uses.items()}
    return {"texts": len(lengths), "tokens": int(lengths.sum()), **unseen}


def cautions(sweeps: Sequence[Mapping[str, Any]], epochs: float) -> Iterator[str]:
    """What a reader should know before trusting the verdict."""
    outside = [f"{one['arm']} at {one['depth']} layers" for one in sweeps if not one["interior"]]
    if outside:
        yield f"The best rate of {listed(outside)} is at the end of the rates that were tried."
    if epochs > MOST_EPOCHS:
        yield f"Every text was read {epochs:.1f} times, so that the arms may differ in what they remember."


def row_of(matching: str, arm: str, found: Found) -> dict[str, Any]:
    """A comparison as plain data."""
    row = {"arm": arm, "matching": matching, "outcome": outcome(found), "why": found.why, "depths": found.depths}
    return {**row, **(asdict(found.comparison) if found.comparison else {})}


def figures_of(depth: int, one: Depth, size: Bytes) -> dict[str, Any]:
    """The figures of an arm at one depth."""
    measured, costs = one.measured, one.costs
    sizes = {"parameters": costs.parameters, "active": costs.active, "inner": costs.inner}
    facts = {"depth": depth, **sizes, "flops_per_token": costs.flops, "rate": one.cells[0].cell.rate}
    decays = []
    for number, tokens in enumerate(measured.tokens):
        scores = measured.nats[number][None]
        own = compare(scores, np.zeros_like(scores), size)
        bytes_a_token = size.sum() / one.cells[0].decays[number]["scored"]
        low, mean, high = (math.exp(bits * math.log(2) * bytes_a_token) for bits in (own.low, own.mean, own.high))
        spent = {"tokens": tokens, "flops": tokens * costs.flops, "seconds": tokens / one.speed}
        spent["per_parameter"] = measured.per_parameter(tokens)
        judged = {"bits": own.mean, "interval": [own.low, own.high]}
        decays.append({**spent, **judged, "perplexity": mean, "perplexity_interval": [low, high]})
    found = {"speed": one.speed, "decays": decays, "curve": curve(one.cells), "load": loads(one.cells)}
    return {**facts, **found}


def curve(cells: Sequence[Finished]) -> dict[str, list[float]]:
    """The training loss on the way to the last decay as a running mean: the lowest, mean and highest of the seeds."""
    ways = [cell.way for cell in cells]
    losses = np.array([smoothed([row["loss"] for row in way])[0] for way in ways])
    chosen = thinned(len(ways[0]))
    bands = {"low": losses.min(0), "mean": losses.mean(0), "high": losses.max(0)}
    return {"tokens": [ways[0][at]["tokens"] for at in chosen], **{k: v[chosen].tolist() for k, v in bands.items()}}


def loads(cells: Sequence[Finished]) -> list[dict[str, Any]]:
    """The busiest and the idlest expert of every sparse layer, as multiples of the mean load; none of a dense arm."""
    ways = [cell.way for cell in cells]
    if "load" not in ways[0][0]:
        return []
    found = np.array([[row["load"] for row in way] for way in ways])  # seeds, steps, layers, experts
    chosen, late = thinned(len(ways[0])), -max(1, round(LATE * len(ways[0])))
    worst, least = found.max(-1).mean(0), found.min(-1).mean(0)
    tokens = [ways[0][at]["tokens"] for at in chosen]
    return [
        {
            **{"tokens": tokens, "worst": np.array(smoothed(worst[:, layer].tolist())[0])[chosen].tolist()},
            **{"late_worst": float(worst[late:, layer].mean()), "late_least": float(least[late:, layer].mean())},
        }
        for layer in range(found.shape[2])
    ]


def thinned(steps: int) -> list[int]:
    """Positions of at most `POINTS` steps, the last one among them."""
    return [*range(steps - 1, -1, -max(1, -(-steps // POINTS)))][::-1]


def by_cell(arms: Arms) -> Iterator[tuple[dict[str, Any], Finished]]:
    for depths in arms.values():
        for one in depths.values():
            for cell in one.cells:
                yield {"arm": cell.cell.arm, "layers": cell.cell.depth, "seed": cell.cell.seed}, cell


def losses(arms: Arms) -> Iterator[dict[str, Any]]:
    for name, cell in by_cell(arms):
        for row in cell.rows:
            yield {**name, **{key: row[key] for key in ("segment", "step", "tokens", "loss")}}


def times(arms: Arms) -> Iterator[dict[str, Any]]:
    for name, cell in by_cell(arms):
        for decay in cell.decays:
            spent = {"tokens": decay["tokens"], "seconds": cell.seconds(decay["steps"])}
            yield {**name, **spent, "tokens_per_second": cell.speed}


def perplexities(arms: Arms, size: Bytes) -> Iterator[dict[str, Any]]:
    for name, cell in by_cell(arms):
        for decay, nats in zip(cell.decays, cell.nats, strict=True):
            judged = {
                "perplexity": math.exp(decay["nats"] / decay["scored"]),
                "bits_per_byte": bits_per_byte(nats, size),
            }
            yield {**name, "tokens": decay["tokens"], **judged}
