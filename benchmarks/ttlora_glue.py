"""`python -m benchmarks.ttlora_glue DATA BASE`: TT-LoRA against LoRA and full fine-tuning on four tasks of GLUE.

DATA: folder with mrpc, cola, qnli and sst2, each train.jsonl and test.jsonl, and the other tasks of
recipes/ttlora-eight.yaml; BASE: folder of an encoder. A cell is a method, a task and a seed, computed in a process of
its own; what it found is kept in --work, so an interrupted benchmark goes on with the cells that are missing. Then the
mixtures of two recipes are run, and benchmarks/results/ttlora_glue.md is written.
"""

import argparse
import json
import multiprocessing
import resource
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from moesaic.kinds.courses import alone

import moesaic
from benchmarks.glue_report import report
from moesaic.adapters import Design, LoRADesign, TrainDesign
from moesaic.artefacts.backbone import load_backbone
from moesaic.config import Pool
from moesaic.data.answers import LabelledTokens, encode_labelled
from moesaic.data.batches import Schedule
from moesaic.data.splits import load_domain, take
from moesaic.files import write_json
from moesaic.model.classifier import Classifier, Head, usual_shape
from moesaic.ops.metrics import metric, tallies
from moesaic.recipe import read as read_recipe
from moesaic.sections.sources import LabelledData
from moesaic.sections.training import Train
from moesaic.train.classification import Measured, loss_of, measure
from moesaic.train.loop import Trained, fit

EXPERT = "it"
POOL: Pool = "mean"
FOUR, EIGHT = (Path(__file__).parents[1] / "recipes" / f"{name}.yaml" for name in ("ttlora-glue", "ttlora-eight"))
RESULT = Path(__file__).parent / "results" / "ttlora_glue.md"


@dataclass(frozen=True)
class Method:
    """What is trained beside the head: an adapter, or the whole base; and the rates that are tried."""

    design: Design | None
    rates: tuple[float, ...]


LINEARS = ["query", "key", "value", "dense"]
METHODS = {
    "LoRA r=16": Method(LoRADesign(16, 2.0, LINEARS), (1e-3, 2e-3)),
    "TT-LoRA r=2": Method(TrainDesign(2, 4.0, LINEARS, 3), (2e-3, 3e-3)),
    "TT-LoRA r=2, cut finer": Method(TrainDesign(2, 4.0, LINEARS, 8), (2e-3, 3e-3)),
    "LoRA r=8": Method(LoRADesign(8, 2.0, LINEARS), (1e-3, 2e-3)),
    "full fine-tuning": Method(None, (5e-5, 1.5e-4)),
}
CLAIM = ["TT-LoRA r=2", "LoRA r=16"]
"""Whom the claim is about; they come first, so that an interrupted benchmark has them."""
STEPS = {"cola": 800, "sst2": 300, "mrpc": 300, "qnli": 300}
"""The first tells methods apart best; with the first seed it chooses the rate of a method for all."""
SETTINGS = {"batch": 16, "length": 64, "warmup": 0.1, "evaluate_every": 50}
ROWS = {"validation": 500, "test": 2000}
"""How many are read at most."""


@dataclass(frozen=True)
class Cell:
    """One training, or one for each rate, and its score."""

    method: str
    task: str
    seed: int

    @property
    def file(self) -> str:
        return f"{self.method}-{self.task}-{self.seed}.json".replace(" ", "-")


def compute(cell: Cell, data: Path, base: Path, rates: tuple[float, ...]) -> dict[str, Any]:
    """Train at every rate, keep the best on validation, and score it on the test rows."""
    torch.set_num_threads(1)
    best, outcomes = Training(cell, data, base, rates[0]), dict[str, float]()
    for lr in rates:
        one = best if lr == rates[0] else Training(cell, data, base, lr)
        outcomes[f"{lr:g}"] = -one.trained.best
        best = min(best, one, key=lambda training: training.trained.best)
    found = best.measured(best.test)
    return {
        **asdict(cell),
        **made_by(cell),
        "parameters": best.parameters,
        "lr": best.lr,
        "validation": outcomes,
        "score": found.score,
        "floor": floor(best),
        "metrics": found.metrics[cell.task],
        "rows": {"train": len(best.train), "validation": len(best.validation), "test": len(best.test)},
        "seconds": best.seconds,
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def floor(one: "Training") -> float:
    """The score on test rows of the label that is most frequent in training."""
    most = Counter(row.label for row in one.train).most_common(1)[0][0]
    truth = np.array([row.label for row in one.test])
    sums = tallies(truth, np.full_like(truth, most), len(one.labels)).sum(0)
    return float(metric(one.data.metrics[0], sums))


class Training:
    """One training of a cell, at one rate: every method has the same head, rows, order of rows and schedule."""

    def __init__(self, cell: Cell, data: Path, base: Path, lr: float):
        files = {split: f"{cell.task}/{split}.jsonl" for split in ("train", "test")}
        self.data = LabelledData.model_validate({"task": cell.task, **files})
        domain, backbone = load_domain(cell.task, self.data, data.joinpath), load_backbone(base)
        self.task, self.pad, self.labels, self.lr = cell.task, backbone.pad, domain.labels, lr
        settings = Train.model_validate({"steps": STEPS[cell.task], **SETTINGS})

        def encoded(split: str, most: int) -> list[LabelledTokens]:
            some = take(getattr(domain, split), most)
            return encode_labelled(some, backbone.writer, settings.length, domain.labels)

        self.train = encoded("train", sys.maxsize)
        self.validation, self.test = (encoded(split, most) for split, most in ROWS.items())
        body, design = backbone.body, METHODS[cell.method].design
        body.requires_grad_(design is None)
        if body.pooler:
            body.pooler.requires_grad_(False)  # nobody reads it
        generator = torch.Generator().manual_seed(cell.seed)
        if design:
            design.fresh(body, range(body.config.num_layers), generator).adapt(body)
        self.parameters = sum(p.numel() for p in body.parameters() if p.requires_grad)
        head = Head.fresh(usual_shape(body, POOL, domain.labels), body.config.hidden_size, generator)
        self.classifier = Classifier(body, {EXPERT: head}, POOL)
        started = time.process_time()
        self.trained = self.fitted(settings, lr, cell.seed)
        self.seconds = time.process_time() - started
        self.classifier.load_state_dict(self.trained.state, strict=False)

    def fitted(self, settings: Train, lr: float, seed: int) -> Trained:
        learning = {name: p for name, p in self.classifier.named_parameters() if p.requires_grad}
        schedule = Schedule(self.train, settings.batch, seed)
        loss = loss_of(self.classifier, alone, self.pad)
        return fit(
            *(learning, schedule, loss, lambda: self.measured(self.validation).loss, settings, lr, lambda row: None),
            seed=seed,
        )

    def measured(self, rows: list[LabelledTokens]) -> Measured:
        metrics, counts = {self.task: self.data.metrics}, {self.task: len(self.labels)}
        return measure(self.classifier, alone, {self.task: rows}, 32, self.pad, metrics, counts)


def made_by(cell: Cell) -> dict[str, Any]:
    """All that a cell depends on, but for its own name and the files."""
    return {"steps": STEPS[cell.task], "settings": SETTINGS, "most": ROWS, "by": asdict(METHODS[cell.method])}


def kept(cell: Cell, work: Path) -> dict[str, Any] | None:
    """What a cell found, if that was computed with the settings of now."""
    at = work / cell.file
    if not at.is_file():
        return None
    found: dict[str, Any] = json.loads(at.read_text())
    same = json.loads(json.dumps(made_by(cell)))
    return found if {key: found.get(key) for key in same} == same else None


def main(given: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ttlora_glue", description="See the top of the file.")
    parser.add_argument("data", type=Path, help="folder of the tasks")
    parser.add_argument("base", type=Path, help="folder of the encoder")
    parser.add_argument("--quick", action="store_true", help="one seed, and no mixture of eight tasks")
    parser.add_argument("--work", type=Path, default=Path("runs/ttlora-glue"), help="where finished cells are kept")
    parser.add_argument("--workers", type=int, default=2, help="cells side by side, each with one thread")
    parser.add_argument("--only", choices=("cells", "mixtures", "page"), help="a part of it; for several machines")
    told = parser.parse_args(given)
    seeds = (0,) if told.quick else (0, 1, 2)
    told.work.mkdir(parents=True, exist_ok=True)
    if told.only in (None, "cells"):
        compute_all(seeds, told)
    mixtures = [(FOUR, seed) for seed in seeds] + ([] if told.quick else [(EIGHT, 0)])
    if told.only in (None, "mixtures"):
        for recipe, seed in mixtures:
            places = [f"data_root={told.data.absolute()}", f"base.path={told.base.absolute()}"]
            settings = read_recipe(recipe, [*places, f"seed={seed}", f"workers={told.workers}"])
            moesaic.run(settings, told.work / f"{recipe.stem}-{seed}")
            write(told, seeds, mixtures)
    write(told, seeds, mixtures)


def compute_all(seeds: tuple[int, ...], told: argparse.Namespace) -> None:
    """The cells that are missing; the claim's first."""
    methods = [*CLAIM, *(method for method in METHODS if method not in CLAIM)]
    with ProcessPoolExecutor(told.workers, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        for done in as_completed([pool.submit(of_method, method, seeds, told) for method in methods]):
            done.result()


def of_method(method: str, seeds: tuple[int, ...], told: argparse.Namespace) -> None:
    """What is missing of one method: the first task with the first seed tries every rate, all others take its best."""
    rates = METHODS[method].rates
    for seed, task in product(seeds, STEPS):
        cell = Cell(method, task, seed)
        found = kept(cell, told.work)
        if not found:
            found = compute(cell, told.data, told.base, rates)
            write_json(told.work / cell.file, found)
            print(f"{method}, {task}, seed {seed}: {found['score']:.3f}, {found['seconds']:.0f} s", flush=True)
        rates = (found["lr"],)


def write(told: argparse.Namespace, seeds: tuple[int, ...], mixtures: list[tuple[Path, int]]) -> None:
    """The page, of what there is by now."""
    cells = [Cell(method, task, seed) for method in METHODS for task in STEPS for seed in seeds]
    found = [one for cell in cells if (one := kept(cell, told.work))]
    runs = {
        recipe.stem: [told.work / f"{recipe.stem}-{seed}" for one, seed in mixtures if one == recipe]
        for recipe, _ in mixtures
    }
    RESULT.write_text(report(found, len(cells), runs, "--quick" if told.quick else ""))


if __name__ == "__main__":
    main(sys.argv[1:])
