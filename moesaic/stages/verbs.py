"""The whole chain, base -> experts -> router -> mixture -> evaluation, and each stage of it by itself.

These functions are the Python twins of the verbs. Knows nothing about terminals.
"""

import multiprocessing
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

from moesaic.data.demo import provenance
from moesaic.data.duplicates import find_duplicates, summary
from moesaic.errors import RecipeError, memory_for, nearest
from moesaic.evaluate.texts import require_packages
from moesaic.files import disk, lock, write_bytes, write_json, write_sealed
from moesaic.recipe import DemoData, Recipe, dump
from moesaic.report import write_report
from moesaic.stages.classifying import stored_in
from moesaic.stages.evaluation import evaluate as evaluate_stage
from moesaic.stages.experts import check_names, train_experts
from moesaic.stages.experts import verify_expert as verify_stage
from moesaic.stages.jobs import Jobs
from moesaic.stages.mixed import fingerprint_of, part_folders, read_part, take_out
from moesaic.stages.pretraining import pretrain as pretrain_stage
from moesaic.stages.pretraining import text_of
from moesaic.stages.progress import Progress, Silent
from moesaic.stages.record import Recorder
from moesaic.stages.routers import at as router_at
from moesaic.stages.routers import specs, train_routers
from moesaic.stages.stopping import listening
from moesaic.stages.texts import take_stock
from moesaic.stages.training import forget
from moesaic.stages.workshop import Workshop, keeping
from moesaic.weights.beside import tokenizer_beside
from moesaic.weights.classifier import load_classifier
from moesaic.weights.mixture import Stored, load_mixture, room_for, save_mixture
from moesaic.weights.router import load_router


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
    with opened(recipe, root, progress, strict, restart) as (workshop, told, jobs):

        @contextmanager
        def stage(name: str) -> Iterator[None]:
            started = time.perf_counter()
            yield
            seconds[name] = round(time.perf_counter() - started, 2)
            told.note(f"{name}: {seconds[name]:.1f} s")

        with stage("data"):
            look_for_duplicates(workshop, told)
        with stage("base"):
            pretrain_stage(workshop, told)
        with stage("experts"):
            train_experts(workshop, [*workshop.trained_experts(), *wanted_controls(workshop)], told, jobs)
        with stage("router"):
            train_routers(workshop, told, jobs)
        with stage("mixture"):
            compose_stage(workshop, told)
        with stage("evaluation"):
            evaluation = evaluate_stage(workshop, told, jobs)
        if "stages" not in evaluation["timing"]:  # one that was skipped keeps the times in which it was made
            evaluation["timing"]["stages"] = seconds
            write_sealed(workshop.root / "evaluation.json", evaluation)
        told.note(f"report: {write_report(workshop.root)}")
    return evaluation


def pretrain(
    recipe: Recipe,
    root: str | PathLike[str],
    progress: Progress | None = None,
    *,
    strict: bool = False,
    restart: Collection[str] = (),
) -> Path:
    """Make the base. Returns the folder it lies in."""
    with opened(recipe, root, progress, strict, restart) as (workshop, told, _):
        return pretrain_stage(workshop, told)


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
    with opened(recipe, root, progress, strict, restart) as (workshop, told, jobs):
        chosen = check_names(workshop, names) if names else [*workshop.trained_experts(), *wanted_controls(workshop)]
        train_experts(workshop, chosen, told, jobs)
        return {name: workshop.part_at(name) for name in chosen}


def verify_expert(
    recipe: Recipe, root: str | PathLike[str], names: list[str], progress: Progress | None = None
) -> list[dict[str, Any]]:
    """Read experts back from disk over a fresh base and measure them again; raises where they are not as they say."""
    with opened(recipe, root, progress, makes=False) as (workshop, _, _):
        return [verify_stage(workshop, name) for name in check_names(workshop, names)]


def train_router(
    recipe: Recipe,
    root: str | PathLike[str],
    progress: Progress | None = None,
    *,
    strict: bool = False,
    restart: Collection[str] = (),
) -> Path:
    """Train the router, and those it is compared with. Returns the folder of the mixture's own."""
    with opened(recipe, root, progress, strict, restart) as (workshop, told, jobs):
        train_routers(workshop, told, jobs)
        return workshop.router_at


def compose(recipe: Recipe, root: str | PathLike[str], progress: Progress | None = None) -> Path:
    """Join base, experts and router into one folder. Returns it."""
    with opened(recipe, root, progress, reads=False) as (workshop, told, _):
        compose_stage(workshop, told)
        return workshop.mixture_at


def evaluate(recipe: Recipe, root: str | PathLike[str], progress: Progress | None = None) -> dict[str, Any]:
    """Judge the mixture that stands in the run directory against its controls. Returns the evaluation."""
    require_metrics(recipe)
    with opened(recipe, root, progress) as (workshop, told, jobs):
        return evaluate_stage(workshop, told, jobs)


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
) -> Iterator[tuple[Workshop, Recorder, Jobs]]:
    """A run directory with nobody else in it, and the recipe written down beside what it makes.

    `reads`: whether texts will be read; `makes`: whether anything will be written.
    """
    if multiprocessing.parent_process() is not None:
        hint = 'call it under `if __name__ == "__main__":`, because processes of the pool import the script again'
        raise RecipeError("a run was started while a process of its own pool was starting", hint=hint)
    root = Path(root).absolute()
    with (
        listening(),
        lock(root),
        keeping(),
        Recorder(root, progress or Silent()) as told,
        Jobs(recipe.workers, told) as jobs,
    ):
        if makes:
            write_bytes(root / "recipe.yaml", dump(recipe).encode())
        workshop = Workshop(recipe, root, strict)
        for name in restart:
            forget(workshop, part_of(workshop, name))
        if reads:
            take_stock(workshop, told)
        for place in recipe.places.values():  # before any work, as one that is missing would stop it in the end
            workshop.located(place)
        with memory_for("this stage", "use a smaller base, shorter rows, or fewer workers"):
            yield workshop, told, jobs
        if not any(path.is_file() for path in (root / "checkpoints").rglob("*")):
            disk.remove(root / "checkpoints")


def part_of(workshop: Workshop, name: str) -> Path:
    """Where what a training is called on the command line will lie."""
    parts = {"base": workshop.root / "base", **{name: router_at(workshop, name) for name in specs(workshop)}}
    parts |= {name: workshop.part_at(name) for name in (*workshop.trained_experts(), *workshop.recipe.trained_controls)}
    if name not in parts:
        hint = nearest(name, [*parts])
        raise RecipeError("no such training", field="restart", expected=" or ".join(parts), got=name, hint=hint)
    return parts[name]


def look_for_duplicates(workshop: Workshop, progress: Progress) -> None:
    """Report texts that stand in more than one split or domain; a split's own duplicates were dropped at reading."""
    texts = {
        (domain.name, split): [text_of(example) for example in getattr(domain, split)]
        for domain in workshop.domains.values()
        for split in ("train", "validation", "test")
    }
    if workshop.unseen:
        texts["unseen", "test"] = [text_of(example) for example in workshop.unseen]
    found = find_duplicates(texts)
    counts = {domain.name: domain.dropped for domain in workshop.domains.values() if any(domain.dropped.values())}
    rows = {f"{domain}/{split}": len(some) for (domain, split), some in texts.items()}
    demos = {name: e.data.demo for name, e in workshop.recipe.experts.items() if isinstance(e.data, DemoData)}
    facts = {"files": workshop.files, "rows": rows, "dropped": counts, "duplicates": summary(found)}
    facts |= {"provenance": {name: provenance(domain) for name, domain in demos.items()}} if demos else {}
    write_json(workshop.root / "data.json", facts)
    for domain in workshop.domains.values():
        sizes = ", ".join(f"{len(getattr(domain, split))} {split}" for split in ("train", "validation", "test"))
        progress.note(f"{domain.name}: {sizes}")
    if found:
        progress.note(f"{len(found)} texts stand, exactly or nearly, in two splits or domains: see data.json")


def wanted_controls(workshop: Workshop) -> list[str]:
    """The controls to train; without experts that are trained here there is nothing to train them on."""
    wanted = workshop.recipe.evaluate.controls if workshop.trained_experts() else []
    return [name for name in workshop.recipe.trained_controls if wanted == "all" or name in wanted]


def compose_stage(workshop: Workshop, progress: Progress) -> None:
    """Join the parts into the mixture's folder, unless it stands."""
    recipe = workshop.recipe
    take_out(workshop, progress)
    folders = part_folders(workshop)
    for name in workshop.trained_experts():
        if not folders[name].is_dir():
            hint = f"train it first: moesaic train-expert RECIPE --expert {name}"
            raise RecipeError(f"there is no expert '{name}' yet", path=folders[name], hint=hint)
    if not workshop.router_at.is_dir():
        hint = "train it first: moesaic train-router RECIPE"
        raise RecipeError("there is no router yet", path=workshop.router_at, hint=hint)
    experts = experts_in(workshop, folders, progress)
    router = load_router(workshop.router_at, workshop.base_fingerprint)
    if set(router.names) != set(experts):
        raise RecipeError(
            "the router was trained for other experts",
            expected=", ".join(sorted(experts)),
            got=", ".join(sorted(router.names)),
            hint="run train-router again",
        )
    how = {"level": recipe.mixture.level, "combine": recipe.mixture.combine} if recipe.site == "model" else {}
    key = workshop.key(
        "mixture",
        **how,
        base=workshop.base_fingerprint,
        experts={name: fingerprint_of(expert, folders[name]) for name, expert in experts.items()},
        router=workshop.identity(workshop.router_at),
    )
    if workshop.finished(workshop.mixture_at, key, progress):
        progress.note("mixture: finished, skipped")
        return
    facts = {
        "stage_key": key,
        "name": workshop.recipe.name,
        "site": recipe.site,
        "level": recipe.mixture.level,
        "prompt_tokens": recipe.router.prompt_tokens,
        "origins": workshop.origins,
        **how,
    }
    if workshop.recipe.labelled:
        labels = {name: list(domain.labels) for name, domain in workshop.domains.items()}
        facts |= {"labels": labels, "pool": workshop.pool, "length": workshop.recipe.train.length}
    workshop.publish(
        workshop.mixture_at,
        lambda folder: save_mixture(folder, workshop.base_at, folders, workshop.router_at, facts),
        room_for(workshop.base_at, folders.values(), workshop.router_at),
    )
    (load_classifier if workshop.recipe.labelled else load_mixture)(workshop.mixture_at)


def experts_in(workshop: Workshop, folders: dict[str, Path], progress: Progress) -> Mapping[str, Stored]:
    """The experts that a mixture is made of, each held against the base; what is odd about their text is told."""
    if workshop.recipe.labelled:
        return stored_in(workshop, folders)
    base = workshop.base
    for name, folder in folders.items() if workshop.recipe.site == "linear" else ():
        for odd in tokenizer_beside(folder, base.tokenizer):
            progress.warn(f"{name}: {odd}")
    return {name: read_part(workshop, folder, base) for name, folder in folders.items()}
