"""The whole chain, base -> experts -> router -> mixture -> evaluation, and each stage of it by itself.

These functions are the Python twins of the verbs. Knows nothing about terminals.
"""

import multiprocessing
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from moesaic.data.demo import provenance
from moesaic.data.duplicates import find_duplicates, summary
from moesaic.errors import RecipeError, memory_for, nearest
from moesaic.evaluate.texts import require_packages
from moesaic.files import disk, lock, read_sealed, write_bytes, write_json, write_sealed
from moesaic.recipe import Recipe, dump
from moesaic.runs.directory import RunDir
from moesaic.runs.jobs import Jobs
from moesaic.runs.part import Part, ensure, graph_of
from moesaic.runs.progress import Progress, Silent
from moesaic.runs.rejected_rows import take_stock
from moesaic.runs.signals import listening
from moesaic.runs.tensorboard import Recorder
from moesaic.stages.base import BasePart, text_of
from moesaic.stages.evaluation import EvaluationPart
from moesaic.stages.experts import ExpertPart, ExtractedPart, check_names, is_extracted, wanted_controls
from moesaic.stages.experts import verify_expert as verify
from moesaic.stages.mixture import MixturePart
from moesaic.stages.report import ReportPart
from moesaic.stages.routers import RouterPart, specs
from moesaic.tasks import Address, Run, open_run

STAGES = ("base", "experts", "router", "mixture", "evaluation", "report")
"""The order in which a whole run makes its parts."""


def run(
    recipe: Recipe,
    root: str | PathLike[str],
    progress: Progress | None = None,
    *,
    strict: bool = False,
    restart: Collection[str] = (),
) -> dict[str, Any]:
    """Make everything the recipe asks for and judge it; what is finished is skipped. Returns the evaluation.

    `strict`: a damaged part or saved state is refused, not made anew or passed over. `restart`: names of trainings
    (base, an expert, a control, router) whose half-done states are dropped. The same in all verbs that train.
    """
    require_metrics(recipe)
    seconds: dict[str, float] = {}
    with opened(recipe, root, progress, strict, restart) as bench:
        with timed("data", seconds, bench.told):
            look_for_duplicates(bench.run, bench.told)
        for stage in STAGES:
            if stage == "report":
                add_times(bench.run.dir.evaluation_at, seconds)
            with timed(stage, seconds, bench.told):
                bench.make(stage)
        return read_sealed(bench.run.dir.evaluation_at)


def pretrain(
    recipe: Recipe,
    root: str | PathLike[str],
    progress: Progress | None = None,
    *,
    strict: bool = False,
    restart: Collection[str] = (),
) -> Path:
    """Make the base. Returns the folder it lies in."""
    with opened(recipe, root, progress, strict, restart) as bench:
        bench.make("base")
        return bench.run.models.base_at


def train_expert(
    recipe: Recipe,
    root: str | PathLike[str],
    names: list[str],
    progress: Progress | None = None,
    *,
    strict: bool = False,
    restart: Collection[str] = (),
) -> dict[str, Path]:
    """Train those named, experts or controls; or all that the recipe asks for. Returns their folders."""
    with opened(recipe, root, progress, strict, restart) as bench:
        chosen = check_names(recipe, names) if names else [*recipe.trained, *wanted_controls(recipe)]
        bench.ensure([*bench.extracted, *(ExpertPart(bench.run, name) for name in chosen)])
        return {name: bench.run.dir.part_at(name) for name in chosen}


def verify_expert(
    recipe: Recipe, root: str | PathLike[str], names: list[str], progress: Progress | None = None
) -> list[dict[str, Any]]:
    """Read experts back from disk over a fresh base and measure them again; raises where they are not as they say."""
    with opened(recipe, root, progress, makes=False) as bench:
        return [verify(bench.run, name) for name in check_names(recipe, names)]


def train_router(
    recipe: Recipe,
    root: str | PathLike[str],
    progress: Progress | None = None,
    *,
    strict: bool = False,
    restart: Collection[str] = (),
) -> Path:
    """Train the router, and those it is compared with. Returns the folder of the mixture's own."""
    with opened(recipe, root, progress, strict, restart) as bench:
        bench.make("router")
        return bench.run.dir.router_at("router")


def compose(recipe: Recipe, root: str | PathLike[str], progress: Progress | None = None) -> Path:
    """Join base, experts and router into one folder. Returns it."""
    with opened(recipe, root, progress, reads=False) as bench:
        bench.ensure([*bench.extracted, *bench.parts["mixture"]])
        return bench.run.dir.mixture_at


def evaluate(recipe: Recipe, root: str | PathLike[str], progress: Progress | None = None) -> dict[str, Any]:
    """Judge the mixture in the run directory against its controls. Returns the evaluation."""
    require_metrics(recipe)
    with opened(recipe, root, progress) as bench:
        bench.make("evaluation")
        return read_sealed(bench.run.dir.evaluation_at)


@dataclass(frozen=True)
class Bench:
    """A run that is worked on: its parts, who listens, and the processes that do the work."""

    run: Run
    told: Progress
    jobs: Jobs

    @property
    def extracted(self) -> list[Part]:
        """The experts that are extracted from fine-tuned models."""
        names = [name for name in self.run.recipe.experts if is_extracted(self.run, name)]
        return [ExtractedPart(self.run, name, self.told) for name in names]

    @property
    def parts(self) -> dict[str, list[Part]]:
        """Every part of the run, by stage. A new kind of part is one more row."""
        run, recipe = self.run, self.run.recipe
        trained = [*recipe.trained, *wanted_controls(recipe)]
        return {
            "base": [BasePart(run, recipe.base.new)] if recipe.base.new else [],
            "experts": [*self.extracted, *(ExpertPart(run, name) for name in trained)],
            "router": [RouterPart(run, name, spec) for name, spec in specs(run).items()],
            "mixture": [MixturePart(run, self.told)],
            "evaluation": [EvaluationPart(run)],
            "report": [ReportPart(run.dir)],
        }

    def make(self, stage: str) -> None:
        """Make the parts of a stage; a base that is not made here is named."""
        models, place = self.run.models, self.run.recipe.base.place
        if stage == "base" and place:
            found, fingerprint = models.located(place), self.run.task.foundation.fingerprint[:12]
            commit = f", commit {found.commit[:12]}" if found.commit else ""
            self.told.note(f"base: {found.place or found.folder}{commit} ({fingerprint}), as it is")
        self.ensure(self.parts[stage])

    def ensure(self, wanted: list[Part]) -> None:
        """Make those of the wanted parts that are not finished."""
        every = [part for parts in self.parts.values() for part in parts]
        ensure(graph_of(every), wanted, self.told, self.jobs)


@contextmanager
def timed(stage: str, seconds: dict[str, float], told: Progress) -> Iterator[None]:
    """Time a stage, and say how long it took."""
    started = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - started, 2)
    told.note(f"{stage}: {seconds[stage]:.1f} s")


def add_times(at: Path, seconds: dict[str, float]) -> None:
    """Add the times of the stages to an evaluation; one that was skipped keeps the times in which it was made."""
    evaluation = read_sealed(at)
    if "stages" not in evaluation["timing"]:
        evaluation["timing"]["stages"] = seconds
        write_sealed(at, evaluation)


def require_metrics(recipe: Recipe) -> None:
    """Refuse a recipe that asks for text metrics whose packages are missing, before any work."""
    if recipe.evaluate.generate:
        require_packages(recipe.evaluate.generate.metrics)


@contextmanager
def opened(
    recipe: Recipe,
    root: str | PathLike[str],
    progress: Progress | None,
    strict: bool = False,
    restart: Collection[str] = (),
    reads: bool = True,
    makes: bool = True,
) -> Iterator[Bench]:
    """A run directory with nobody else in it, and the recipe written down beside what it makes.

    `reads`: whether texts will be read; `makes`: whether anything will be written.
    """
    if multiprocessing.parent_process() is not None:
        hint = 'call it under `if __name__ == "__main__":`, because processes of the pool import the script again'
        raise RecipeError("a run was started while a process of its own pool was starting", hint=hint)
    root = Path(root).absolute()
    with listening(), lock(root), Recorder(root, progress or Silent()) as told, Jobs(recipe.workers, told) as jobs:
        if makes:
            write_bytes(root / "recipe.yaml", dump(recipe).encode())
        run = open_run(Address(RunDir(recipe, root, strict)))
        for name in restart:
            run.dir.forget(trained_at(run, name))
        if reads:
            take_stock(run.dir, run.materials.rejects, lambda: run.materials.files, told)
        run.models.locate_all()
        with memory_for("this stage", "use a smaller base, shorter rows, or fewer workers"):
            yield Bench(run, told, jobs)
        if not any(path.is_file() for path in (root / "checkpoints").rglob("*")):
            disk.remove(root / "checkpoints")


def trained_at(run: Run, name: str) -> Path:
    """Where a training, by the name that the command line knows, publishes its part."""
    parts = {"base": run.dir.base_at, **{name: run.dir.router_at(name) for name in specs(run)}}
    parts |= {name: run.dir.part_at(name) for name in (*run.recipe.trained, *run.recipe.trained_controls)}
    if name not in parts:
        hint = nearest(name, [*parts])
        raise RecipeError("no such training", field="restart", expected=" or ".join(parts), got=name, hint=hint)
    return parts[name]


def look_for_duplicates(run: Run, progress: Progress) -> None:
    """Report texts that stand in more than one split or domain; a split's own duplicates were dropped at reading."""
    domains, unseen = run.materials.domains, run.materials.unseen
    texts = {
        (domain.name, split): [text_of(example) for example in getattr(domain, split)]
        for domain in domains.values()
        for split in ("train", "validation", "test")
    }
    if unseen:
        texts["unseen", "test"] = [text_of(example) for example in unseen]
    found = find_duplicates(texts)
    counts = {domain.name: domain.dropped for domain in domains.values() if any(domain.dropped.values())}
    rows = {f"{domain}/{split}": len(some) for (domain, split), some in texts.items()}
    demos = {name: demo for name, e in run.recipe.experts.items() if (demo := getattr(e.data, "demo", None))}
    facts = {"files": run.materials.files, "rows": rows, "dropped": counts, "duplicates": summary(found)}
    facts |= {"provenance": {name: provenance(domain) for name, domain in demos.items()}} if demos else {}
    write_json(run.dir.root / "data.json", facts)
    for domain in domains.values():
        sizes = ", ".join(f"{len(getattr(domain, split))} {split}" for split in ("train", "validation", "test"))
        progress.note(f"{domain.name}: {sizes}")
    if found:
        progress.note(f"{len(found)} texts stand, exactly or nearly, in two splits or domains: see data.json")
