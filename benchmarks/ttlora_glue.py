"""`python -m benchmarks.ttlora_glue DATA BASE`: TT-LoRA against LoRA and full fine-tuning on four tasks of GLUE.

DATA: folder with mrpc, cola, qnli and sst2, each train.jsonl and test.jsonl; BASE: folder of an encoder. A cell is a
method, a task and a seed, computed in a process of its own; what it found is kept in --work, so an interrupted
benchmark goes on with the cells that are missing. After each, benchmarks/results/ttlora_glue.md is written again.
"""

import argparse
import json
import multiprocessing
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import moesaic
from benchmarks.glue_report import report
from moesaic.adapters import Design, adapt
from moesaic.data.answers import LabelledTokens, encode_labelled
from moesaic.data.batches import Schedule
from moesaic.data.splits import load_domain, take
from moesaic.files import write_json
from moesaic.model.classifier import Classifier, Head, Pool, usual_shape
from moesaic.ops.metrics import metric, tallies
from moesaic.recipe import LabelledData, Train
from moesaic.recipe import read as read_recipe
from moesaic.stages.courses import alone
from moesaic.train.classification import Measured, loss_of, measure
from moesaic.train.loop import Trained, fit
from moesaic.weights.backbone import load_backbone

TASKS = ("sst2", "mrpc", "qnli", "cola")
TARGETS = ["query", "value"]
EXPERT = "it"
RECIPE = Path(__file__).parents[1] / "recipes" / "ttlora-glue.yaml"
RESULT = Path(__file__).parent / "results" / "ttlora_glue.md"


@dataclass(frozen=True)
class Method:
    """What is trained beside the head: an adapter, or the whole base; and the rates that are tried."""

    design: Design | None
    rates: tuple[float, float, float]


METHODS = {
    "LoRA r=16": Method(Design("lora", 16, 2.0, TARGETS), (6e-4, 2e-3, 6e-3)),
    "TT-LoRA r=5": Method(Design("tt_lora", 5, 8.0, TARGETS), (1e-3, 3e-3, 1e-2)),
    "TT-LoRA r=2": Method(Design("tt_lora", 2, 8.0, TARGETS), (1e-3, 3e-3, 1e-2)),
    "LoRA r=8": Method(Design("lora", 8, 2.0, TARGETS), (6e-4, 2e-3, 6e-3)),
    "full fine-tuning": Method(None, (5e-5, 1.5e-4, 5e-4)),
}
CLAIM = ["LoRA r=16", "TT-LoRA r=5"]
"""Whom the claim is about; they come first, so that an interrupted benchmark has them."""


@dataclass(frozen=True)
class Scale:
    """How much is computed. `grid`: whether seed 0 chooses among a method's rates; else all take the middle one."""

    name: str
    steps: dict[str, int]
    seeds: tuple[int, ...]
    grid: bool
    validation: int
    test: int


FULL = Scale("full", {"sst2": 800, "mrpc": 800, "qnli": 800, "cola": 1500}, (0, 1, 2), True, 500, 2000)
QUICK = Scale("quick", {"sst2": 150, "mrpc": 100, "qnli": 100, "cola": 600}, (0,), False, 300, 400)
SETTINGS = {"batch": 16, "length": 96, "warmup": 0.1, "evaluate_every": 50}


@dataclass(frozen=True)
class Cell:
    """One training and its score. `pool`: which state of a row the head reads."""

    method: str
    task: str
    seed: int
    pool: Pool = "mean"

    @property
    def file(self) -> str:
        return f"{self.method}-{self.task}-{self.pool}-{self.seed}.json".replace(" ", "-")


def cells(scale: Scale) -> Iterator[Cell]:
    """All of them, in the order in which they are computed; last the two that say why states are pooled by their mean.

    Seed 0 of a method and task stands before the seeds that take its rate.
    """
    for seed in scale.seeds:
        for methods in (CLAIM, [method for method in METHODS if method not in CLAIM]):
            yield from (Cell(method, task, seed) for task in TASKS for method in methods)
    yield Cell("LoRA r=16", "sst2", 0, "first")
    yield Cell("LoRA r=16", "mrpc", 0, "first")


def compute(cell: Cell, scale: Scale, data: Path, base: Path, rates: tuple[float, ...]) -> dict[str, Any]:
    """Train at every rate, keep the best on validation, and score it on the test rows."""
    torch.set_num_threads(1)
    best, outcomes = Training(cell, scale, data, base, rates[0]), dict[str, float]()
    for lr in rates:
        one = best if lr == rates[0] else Training(cell, scale, data, base, lr)
        outcomes[f"{lr:g}"] = -one.trained.best
        best = min(best, one, key=lambda training: training.trained.best)
    found = best.measured(best.test)
    return {
        **asdict(cell),
        **made_by(cell, scale),
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

    def __init__(self, cell: Cell, scale: Scale, data: Path, base: Path, lr: float):
        files = {split: f"{cell.task}/{split}.jsonl" for split in ("train", "test")}
        self.data = LabelledData.model_validate({"task": cell.task, **files})
        domain, backbone = load_domain(cell.task, self.data, data.joinpath), load_backbone(base)
        self.task, self.pad, self.labels, self.lr = cell.task, backbone.pad, domain.labels, lr
        settings = Train.model_validate({"steps": scale.steps[cell.task], **SETTINGS})

        def encoded(split: str, most: int) -> list[LabelledTokens]:
            some = take(getattr(domain, split), most)
            return encode_labelled(some, backbone.writer, settings.length, domain.labels)

        self.train = encoded("train", sys.maxsize)
        self.validation, self.test = encoded("validation", scale.validation), encoded("test", scale.test)
        body, design = backbone.body, METHODS[cell.method].design
        body.requires_grad_(design is None)
        if cell.pool != "first" and body.pooler:
            body.pooler.requires_grad_(False)  # nobody reads it
        generator = torch.Generator().manual_seed(cell.seed)
        if design:
            adapt(body, design.fresh(body, range(body.config.num_layers), generator))
        self.parameters = sum(p.numel() for p in body.parameters() if p.requires_grad)
        head = Head.fresh(usual_shape(body, cell.pool, domain.labels), body.config.hidden_size, generator)
        self.classifier = Classifier(body, {EXPERT: head}, cell.pool)
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


def made_by(cell: Cell, scale: Scale) -> dict[str, Any]:
    """All that a cell depends on, but for its own name and the files."""
    return {"scale": asdict(scale), "settings": SETTINGS, "by": asdict(METHODS[cell.method])}


def kept(cell: Cell, scale: Scale, work: Path) -> dict[str, Any] | None:
    """What a cell found, if that was computed with the settings of now."""
    at = work / cell.file
    if not at.is_file():
        return None
    found: dict[str, Any] = json.loads(at.read_text())
    same = json.loads(json.dumps(made_by(cell, scale)))
    return found if {key: found[key] for key in same} == same else None


def rates_of(cell: Cell, scale: Scale, work: Path) -> tuple[float, ...]:
    """What a cell tries: seed 0 the whole grid, others what seed 0 chose; without a grid the middle of it."""
    rates = METHODS[cell.method].rates
    if not scale.grid:
        return rates[1:2]
    first = kept(replace(cell, seed=0), scale, work) if cell.seed else None
    return (first["lr"],) if first else rates


def main(given: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ttlora_glue", description="See the top of the file.")
    parser.add_argument("data", type=Path, help="folder of the tasks")
    parser.add_argument("base", type=Path, help="folder of the encoder")
    parser.add_argument("--quick", action="store_true", help="one seed, fewer steps, rates fixed beforehand")
    parser.add_argument("--work", type=Path, default=Path("runs/ttlora-glue"), help="where finished cells are kept")
    parser.add_argument("--workers", type=int, default=2, help="cells side by side, each with one thread")
    told = parser.parse_args(given)
    scale = QUICK if told.quick else FULL
    work = told.work / scale.name
    work.mkdir(parents=True, exist_ok=True)

    def write() -> None:
        found = [one for cell in cells(scale) if (one := kept(cell, scale, work))]
        runs = [json.loads(path.read_text()) for path in sorted(work.glob("mixture-*/evaluation.json"))]
        RESULT.write_text(report(found, runs, len([*cells(scale)]), len(scale.seeds), " ".join(given)))

    context = multiprocessing.get_context("spawn")
    for seed in scale.seeds:  # the others wait for the rates of seed 0
        missing = [cell for cell in cells(scale) if cell.seed == seed and not kept(cell, scale, work)]
        with ProcessPoolExecutor(told.workers, context, max_tasks_per_child=1) as pool:
            futures = {
                pool.submit(compute, cell, scale, told.data, told.base, rates_of(cell, scale, work)): cell
                for cell in missing
            }
            for future in as_completed(futures):
                found = future.result()
                write_json(work / futures[future].file, found)
                write()
                print(f"{futures[future]}: {found['score']:.3f}, {found['seconds']:.0f} s", flush=True)
    for seed in scale.seeds:
        places = [f"data_root={told.data.absolute()}", f"base.path={told.base.absolute()}"]
        steps = [f"experts.{task}.train.steps={steps}" for task, steps in scale.steps.items()]
        size = [f"seed={seed}", f"workers={told.workers}", f"evaluate.limit={scale.test}"]
        moesaic.run(read_recipe(RECIPE, [*places, *steps, *size]), work / f"mixture-{seed}")
        write()


if __name__ == "__main__":
    main(sys.argv[1:])
