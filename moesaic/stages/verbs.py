"""The whole chain, base -> experts -> router -> mixture -> evaluation, and each stage of it by itself.

These functions are the Python twins of the verbs. Knows nothing about terminals.
"""

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from os import PathLike
from pathlib import Path
from typing import Any

from moesaic.data.containers import Given
from moesaic.data.demo import provenance
from moesaic.data.duplicates import find_duplicates, summary
from moesaic.data.facts import facts_of, told
from moesaic.data.rows import Example, Texts
from moesaic.data.shortlist import Key
from moesaic.data.splits import SPLITS, Domain
from moesaic.data.stored_rows import name_of
from moesaic.errors import RecipeError, memory_for, nearest
from moesaic.evaluate.texts import require_packages
from moesaic.evaluate.units import read_evaluation
from moesaic.files import read_sealed, write_bytes, write_json, write_sealed
from moesaic.hardware import HOST
from moesaic.recipe import Recipe, dump
from moesaic.report import write_continual
from moesaic.runs.directory import RunDir
from moesaic.runs.jobs import Jobs
from moesaic.runs.part import Part, ensure, graph_of
from moesaic.runs.progress import Progress, Silent, Tell, watched
from moesaic.runs.rejected_rows import take_stock
from moesaic.runs.signals import listening
from moesaic.runs.working import working
from moesaic.stages import experts
from moesaic.stages.base import BasePart, help_to_make
from moesaic.stages.continuous import train_continuously
from moesaic.stages.evaluation import EvaluationPart
from moesaic.stages.experts import ExpertPart, ExtractedPart
from moesaic.stages.gates import router_part
from moesaic.stages.mixture import MixturePart
from moesaic.stages.report import ReportPart
from moesaic.stages.routers import specs
from moesaic.stages.sequences import ContinualPart, require_sequence, sequences, trainings
from moesaic.stages.standing import ROOM, State, expert_part, read_state
from moesaic.tasks import Address, Run, open_run
from moesaic.train.ranks import agreed, joined

Root = str | PathLike[str]
Names = Collection[str]

KILO = 1000

STAGES = ("base", "experts", "router", "mixture", "evaluation", "report")
"""The order in which a whole run makes its parts."""


def run(
    recipe: Recipe, root: Root, progress: Progress | None = None, *, strict: bool = False, restart: Names = ()
) -> dict[str, Any]:
    """Make everything that the recipe asks for and judge it; finished parts are skipped. Returns the evaluation.

    `strict`: refuse a damaged part or saved state instead of making it anew or passing over it. `restart`: names of
    trainings (base, an expert, a control, router) whose half-done states are dropped. All verbs that train take both.
    """
    require_metrics(recipe)
    seconds: dict[str, float] = {}
    with opened(recipe, root, progress, strict, restart) as bench:
        with timed("data", seconds, bench.progress):
            report_data(bench)
        for stage in STAGES:
            if stage == "report":
                add_times(bench.run.dir.evaluation_at, seconds)
            with timed(stage, seconds, bench.progress):
                bench.make(stage)
        return read_evaluation(bench.run.dir.evaluation_at)


def pretrain(
    recipe: Recipe, root: Root, progress: Progress | None = None, *, strict: bool = False, restart: Names = ()
) -> Path | None:
    """Make the base. Returns its folder.

    Processes that `torchrun` starts train it together; only the first of them reports, publishes and returns a folder.
    """
    with joined() as rank:
        if rank:
            with listening(once=True):
                help_to_make(open_run(Address(RunDir(recipe, Path(root).absolute(), strict))))
            return None
        with opened(recipe, root, progress, strict, restart) as bench:
            bench.make("base")
            agreed(lambda: False)  # ends the work of the others
            return bench.run.models.base_at


def train_expert(
    recipe: Recipe,
    root: Root,
    names: list[str],
    progress: Progress | None = None,
    *,
    continuous: bool = False,
    rounds: int | None = None,
    strict: bool = False,
    restart: Names = (),
) -> dict[str, Path]:
    """Train the named experts and controls, or all that the recipe asks for. Returns their folders.

    `continuous`: then train the named experts, or all, further in turn, as the section `continuous` of the recipe says,
    until `rounds` rounds are done in all or a signal comes. Every round keeps an expert only where its validation
    improves beyond noise and no domain gets worse through the mixture; experts, router and mixture stay published.
    """
    with opened(recipe, root, progress, strict, restart, reads=not continuous) as bench:
        chosen = experts.check_names(recipe, names) if names else bench.contenders
        if continuous:
            chosen = require_experts(recipe, names)
            bench.ensure(bench.extracted)
            train_continuously(bench.run, chosen, rounds, bench.progress, bench.jobs)
        else:
            bench.ensure([*bench.extracted, *(bench.expert(name) for name in chosen)])
        return {name: bench.run.dir.part_at(name) for name in chosen}


def require_experts(recipe: Recipe, names: Sequence[str]) -> list[str]:
    """The named experts, or all that are trained here; raises for a control, which has no rows of its own."""
    if not recipe.trained:
        raise RecipeError("the recipe trains no expert", field="experts", hint="give an expert data and no path")
    for name in names:
        if name not in recipe.trained:
            what, expected = "only experts are trained continuously", f"one of {', '.join(recipe.trained)}"
            raise RecipeError(what, field="expert", expected=expected, got=name)
    return [*names] or recipe.trained


def verify_expert(
    recipe: Recipe, root: Root, names: list[str], progress: Progress | None = None
) -> list[dict[str, Any]]:
    """Read experts back from disk over a fresh base and measure them again; raises where a figure has changed."""
    with opened(recipe, root, progress, makes=False) as bench:
        return [experts.verify_expert(bench.run, name) for name in experts.check_names(recipe, names)]


def train_router(
    recipe: Recipe, root: Root, progress: Progress | None = None, *, strict: bool = False, restart: Names = ()
) -> Path:
    """Train the mixture's router and those it is compared with. Returns the folder of the mixture's own."""
    with opened(recipe, root, progress, strict, restart) as bench:
        bench.make("router")
        return bench.run.dir.router_at("router")


def compose(recipe: Recipe, root: Root, progress: Progress | None = None) -> Path:
    """Join base, experts and router into one folder. Returns it."""
    with opened(recipe, root, progress, reads=False) as bench:
        bench.ensure([*bench.extracted, *bench.parts["mixture"]])
        return bench.run.dir.mixture_at


def evaluate(recipe: Recipe, root: Root, progress: Progress | None = None) -> dict[str, Any]:
    """Judge the mixture in the run directory against its controls. Returns the evaluation."""
    require_metrics(recipe)
    with opened(recipe, root, progress) as bench:
        bench.make("evaluation")
        return read_evaluation(bench.run.dir.evaluation_at)


def continual(
    recipe: Recipe, root: Root, progress: Progress | None = None, *, strict: bool = False, restart: Names = ()
) -> dict[str, Any]:
    """Learn the experts' tasks one after another by several strategies, and compare them. Returns continual.json.

    Experts that the run has already are taken as they are.
    """
    require_sequence(recipe)
    with opened(recipe, root, progress, strict, restart) as bench:
        bench.make("base")
        part = ContinualPart(bench.run)
        bench.ensure([*(bench.expert(name) for name in recipe.trained), *sequences(bench.run)])
        for router in part.routers:  # each of a run of its own: with the experts so far
            bench.ensure([router])
        bench.ensure([part])
        bench.progress.note(f"report: {write_continual(bench.run.dir.root)}")
        return read_sealed(part.at)


@dataclass(frozen=True)
class Bench:
    """A run in progress: its parts, the listener to its reports, and the processes that do the work."""

    run: Run
    progress: Progress
    jobs: Jobs

    @cached_property
    def extracted(self) -> list[Part]:
        """The experts that are extracted from fine-tuned models."""
        names = [name for name in self.run.recipe.experts if experts.is_extracted(self.run, name)]
        return [ExtractedPart(self.run, name, self.progress) for name in names]

    @cached_property
    def state(self) -> State | None:
        """The state of the run's continuous training; None where there is none."""
        return read_state(self.run.dir, self.progress)

    def expert(self, name: str) -> ExpertPart:
        """The part of an expert or a control."""
        return expert_part(self.run, name, self.state)

    @property
    def contenders(self) -> list[str]:
        """The experts and controls that are trained in the run."""
        return [*self.run.recipe.trained, *experts.wanted_controls(self.run.recipe)]

    @cached_property
    def parts(self) -> dict[str, list[Part]]:
        """Every part of the run, by stage. A new kind of part is one more row."""
        run, base = self.run, self.run.recipe.base.new
        return {
            "base": [BasePart(run, base)] if base else [],
            "experts": [*self.extracted, *(self.expert(name) for name in self.contenders)],
            "router": [router_part(run, name, spec) for name, spec in specs(run).items()],
            "mixture": [MixturePart(run, self.progress)],
            "evaluation": [EvaluationPart(run)],
            "report": [ReportPart(run.dir)],
        }

    def make(self, stage: str) -> None:
        """Make the parts of a stage; an existing base is reported."""
        models, place = self.run.models, self.run.recipe.base.place
        if stage == "base" and place:
            found, fingerprint = models.located(place), self.run.task.foundation.fingerprint[:12]
            commit = f", commit {found.commit[:12]}" if found.commit else ""
            self.progress.note(f"base: {found.place or found.folder}{commit} ({fingerprint}), as it is")
        self.ensure(self.parts[stage])

    def ensure(self, wanted: Sequence[Part]) -> None:
        """Make those of the wanted parts that are not finished."""
        graph = graph_of(part for parts in self.parts.values() for part in parts)
        ensure(graph, wanted, self.progress, self.jobs)


@contextmanager
def timed(stage: str, seconds: dict[str, float], progress: Progress) -> Iterator[None]:
    """Time a stage and report its time."""
    started = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - started, 2)
    progress.note(f"{stage}: {seconds[stage]:.1f} s")


def add_times(at: Path, seconds: dict[str, float]) -> None:
    """Add the times of the stages to an evaluation; one that was skipped keeps the times of its making."""
    evaluation = read_evaluation(at)
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
    root: Root,
    progress: Progress | None,
    strict: bool = False,
    restart: Names = (),
    reads: bool = True,
    makes: bool = True,
) -> Iterator[Bench]:
    """Open and lock a run directory, and write the recipe into it.

    `reads`: texts will be read; `makes`: something will be written.
    """
    root = Path(root).absolute()
    with working(root, recipe.workers, progress or Silent()) as (shown, jobs):
        if makes:
            write_bytes(root / "recipe.yaml", dump(recipe, root).encode())
        run = open_run(Address(RunDir(recipe, root, strict)))
        run.materials.rejects.watch = partial(reading, jobs)
        for name in restart:
            run.dir.forget(trained_at(run, name))
        if reads:
            take_stock(run.dir, run.materials.rejects, lambda: run.materials.files, shown)
        compute = run.models.compute
        if compute != HOST:
            shown.note(f"computes on {compute}")
        run.models.locate_all()
        encoding = run.task.watched(
            lambda domain, rows: watched(rows, len(rows), f"encoding {domain or 'rows'}", jobs.pass_on)
        )
        with encoding, memory_for("this stage", "use a smaller base, shorter rows, or fewer workers"):
            yield Bench(run, shown, jobs)


def reading(jobs: Jobs, path: Path, rows: Iterable[Given]) -> Iterator[Given]:
    """The rows of a file; reports how many of its kilobytes are read."""
    size = path.stat().st_size if path.is_file() else 0
    return watched(rows, size / KILO, f"reading {path.name}", jobs.pass_on, lambda one: len(one.text) / KILO)


def trained_at(run: Run, name: str) -> Path:
    """The path of the part that a training publishes, by the training's name on the command line."""
    parts = {"base": run.dir.base_at, **{name: run.dir.router_at(name) for name in specs(run)}}
    parts |= {name: run.dir.part_at(name) for name in (*run.recipe.trained, *run.recipe.trained_controls)}
    parts |= trainings(run)
    parts[ROOM] = run.dir.root / ROOM
    if name not in parts:
        hint = nearest(name, [*parts])
        raise RecipeError("no such training", field="restart", expected=" or ".join(parts), got=name, hint=hint)
    return parts[name]


def about_rows(domains: Mapping[str, Domain], splits: Mapping[Key, Sequence[Example]], tell: Tell) -> dict[str, Any]:
    """Facts about the rows of each domain, and the number of texts of more than one split or domain."""
    texts = {key: Texts(some) for key, some in splits.items()}
    pairs = find_duplicates(texts, watch=lambda some: watched(some, len(some), "duplicates", tell))
    return {
        "duplicates": summary(pairs),
        "facts": {name: facts_of(domain) for name, domain in domains.items()},
    }


def report_data(bench: Bench) -> None:
    """Write and report facts about the rows, and texts of more than one split or domain.

    A split's own duplicates are dropped when it is read.
    """
    run, progress = bench.run, bench.progress
    domains, unseen = run.materials.domains, run.materials.unseen
    splits = {(domain.name, split): getattr(domain, split) for domain in domains.values() for split in SPLITS}
    splits |= {("unseen", "test"): unseen} if unseen else {}
    counts = {domain.name: domain.dropped for domain in domains.values() if any(domain.dropped.values())}
    rows = {f"{domain}/{split}": len(some) for (domain, split), some in splits.items()}
    demos = {name: demo for name, e in run.recipe.experts.items() if (demo := getattr(e.data, "demo", None))}
    demos |= {"unseen": demo} if (demo := getattr(run.recipe.evaluate.unseen, "demo", None)) else {}
    files = {run.dir.from_data(path): counts for path, counts in run.materials.files.items()}
    names = {"/".join(key): name_of(some) for key, some in splits.items()}
    labels = {name: domain.labels for name, domain in domains.items()}
    found = run.materials.prepared.value(
        ["about", names, labels], partial(about_rows, domains, splits, bench.jobs.pass_on)
    )
    about = found["facts"]
    facts = {"files": files, "rows": rows, "dropped": counts, "duplicates": found["duplicates"]}
    facts |= {"facts": {name: some for name, some in about.items() if some}}
    facts |= {"provenance": {name: provenance(domain) for name, domain in demos.items()}} if demos else {}
    write_json(run.dir.root / "data.json", facts)
    for domain in domains.values():
        sizes = ", ".join(f"{len(getattr(domain, split))} {split}" for split in SPLITS)
        progress.note(f"{domain.name}: {sizes}")
        for line in told(domain.name, about[domain.name]):
            progress.note(line)
    for path, counts in run.materials.files.items():
        for key, count in counts.get("ignored", {}).items():
            progress.note(f"{Path(path).name}: '{key}' is ignored in {count} rows")
    run.materials.prepared.tidy()
    if pairs := sum(kinds[kind] for kinds in found["duplicates"].values() for kind in kinds):
        progress.note(f"{pairs} texts are, exactly or nearly, in two splits or domains: see data.json")
