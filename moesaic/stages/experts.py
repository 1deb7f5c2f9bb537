"""Experts as parts of a run, and the controls that are trained like one (`joint`, `joint_wide`).

All contenders share the order of data, the schedule and the choice: the learning rate of best validation wins. Knows no
kind of expert and no task by name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from torch import Tensor

from moesaic.artefacts.whole_model import identified
from moesaic.data.facts import spelling
from moesaic.data.neutral import identity
from moesaic.data.splits import take
from moesaic.data.stored_rows import name_of
from moesaic.errors import CompatibilityError, MoesaicError, NonFiniteError, RecipeError
from moesaic.files import MANIFEST, digest, read_manifest
from moesaic.kinds import KINDS
from moesaic.kinds.kind import Facts
from moesaic.recipe import Recipe
from moesaic.runs.checkpoints import drop_logs, training, trial_at
from moesaic.runs.directory import RunDir
from moesaic.runs.jobs import Report
from moesaic.runs.part import Part, Work
from moesaic.runs.progress import Progress
from moesaic.sections.expert import Expert, written_sweep
from moesaic.tasks import Address, Run, open_run
from moesaic.tasks.task import Made, Plan, Trainer
from moesaic.train.loop import Trained, fit

CONTROLS = ("joint", "joint_wide")


@dataclass(frozen=True)
class Trial:
    """One training of a contender: its plan, its rate, the name of its state, and its settings in words."""

    plan: Plan
    lr: float
    name: str
    label: str


class ExpertPart(Part):
    """An expert, or a control, that is trained in the run."""

    run: RunDir

    def __init__(self, run: Run, name: str):
        super().__init__(run.dir, run.dir.part_at(name))
        self.source, self.name = run, name
        self.stage = "expert" if name in run.recipe.experts else name

    def needs(self) -> tuple[Path, ...]:
        return (self.source.models.base_at,)

    @property
    def steps(self) -> int:
        return self.run.recipe.train_of(self.name).steps * len(trials_of(self.source, self.name))

    def inputs(self) -> dict[str, Any]:
        """The expert's own section (all of them for a control), its training, its texts, the base and the task."""
        recipe, task = self.run.recipe, self.source.task
        names = [self.name] if self.name in recipe.experts else recipe.trained
        apart = {"keywords", "train", "data"}
        return {
            "experts": {n: recipe.experts[n].model_dump(mode="json", exclude=apart) for n in names},
            "train": recipe.train_of(self.name).model_dump(mode="json"),
            "router": {"prompt_tokens": recipe.router.prompt_tokens},
            "data": digests(self.source, self.name),
            "base": task.foundation.fingerprint,
            **({"neutral": identity()} if recipe.train_of(self.name).tether else {}),
            **task.compute.key,
            **task.identity(domains_of(self.source, self.name)),
        }

    def missing(self) -> MoesaicError:
        hint = f"train it first: moesaic train-expert RECIPE --expert {self.name}"
        return RecipeError(f"there is no expert '{self.name}' yet", path=self.at, hint=hint)

    def work(self) -> Work | None:
        return partial(train_one, self.source.address, self.name)


class ExtractedPart(Part):
    """An expert that is extracted from a fine-tuned model in the run, or from the base itself."""

    stage = "blocks"

    def __init__(self, run: Run, name: str, progress: Progress):
        super().__init__(run.dir, run.dir.part_at(name))
        self.source, self.name, self.progress, self.spec = run, name, progress, run.recipe.experts[name]
        self.terms = KINDS[self.spec.kind].terms(self.spec)

    def needs(self) -> tuple[Path, ...]:
        return (self.source.models.base_at,)

    @cached_property
    def model(self) -> Path:
        """The folder of the fine-tuned model."""
        return self.source.models.located(self.spec.path or "").folder

    @cached_property
    def made_of(self) -> str:
        """The fingerprint of the fine-tuned model."""
        manifest = read_manifest(self.model) if (self.model / MANIFEST).is_file() else {}
        return identified(self.model, manifest)[2]

    def inputs(self) -> dict[str, Any]:
        base = self.source.models.stored_base
        return {"source": self.made_of, "base": base.fingerprint, "ignore_rest": self.terms.ignore_rest}

    def missing(self) -> MoesaicError:
        hint = "extract it first: moesaic train-expert RECIPE"
        return RecipeError(f"there is no expert '{self.name}' yet", path=self.at, hint=hint)

    def make(self, report: Report) -> None:
        kind, base = KINDS[self.spec.kind], self.source.models.stored_base
        if self.made_of == base.fingerprint:
            value, facts = kind.of_base(base), dict[str, Any]({"from": "the base itself", "verified": True})
        else:
            value, facts = kind.extract(base, self.model, self.terms, self.progress, self.name)
        facts |= {"name": self.name, "stage_key": self.key, "source_fingerprint": self.made_of, **base.told}
        size = value.num_parameters * next(base.decoder.parameters()).element_size()
        self.run.publish(self.at, lambda folder: kind.save(folder, value, base, facts), size)


# --- the experts of a run


def is_extracted(run: Run, name: str) -> bool:
    """Tell whether an expert has to be extracted from the model that its path names."""
    spec = run.recipe.experts[name]
    return bool(spec.path) and KINDS[spec.kind].extracted(run.models.located(spec.path or "").folder)


def folders_of(run: Run) -> dict[str, Path]:
    """Every expert's folder: trained here, extracted here, or trained elsewhere."""
    return {
        name: run.dir.part_at(name) if made_here(run, name) else run.models.located(spec.path or "").folder
        for name, spec in run.recipe.experts.items()
    }


def made_here(run: Run, name: str) -> bool:
    """Tell whether an expert is trained or extracted in the run."""
    return not run.recipe.experts[name].path or is_extracted(run, name)


def version_of(run: Run, name: str, folder: Path) -> str:
    """The identity of an expert: the key of one that was made here, the fingerprint of others."""
    if made_here(run, name):
        return digest(run.dir.identity(folder))
    return KINDS[run.recipe.experts[name].kind].version(folder, lambda: run.models.base)


def wanted_controls(recipe: Recipe) -> list[str]:
    """The controls to train: none without experts that are trained here."""
    wanted = recipe.evaluate.controls if recipe.trained else []
    return [name for name in recipe.trained_controls if wanted == "all" or name in wanted]


def domains_of(run: Run, name: str) -> list[str]:
    """The domains that a contender learns from: an expert from its own, a control from all."""
    return [domain for domain in run.materials.domains if domain == name or name in CONTROLS]


def digests(run: Run, name: str) -> list[str]:
    """The hashes of the texts that a contender learns from."""
    return [run.materials.domains[domain].digest for domain in domains_of(run, name)]


# --- plans and trials


def plan_of(run: Run, name: str) -> Plan:
    """Plan an expert as the recipe describes it, or a control in the experts' shape on all texts."""
    recipe = run.recipe
    specs = [recipe.experts[n] for n in ([name] if name in recipe.experts else recipe.trained)]
    domains = {n: run.materials.domains[n] for n in domains_of(run, name)}
    layers = specs[0].layers if len({spec.layers for spec in specs}) == 1 else None
    kind, design = KINDS[specs[0].kind], KINDS[specs[0].kind].design(specs[0])
    if name not in recipe.experts:
        kind, design = control_of(run, name, specs, layers)
    return Plan(
        kind,
        design,
        layers,
        {n: domain.train for n, domain in domains.items()},
        {n: take(domain.validation, run.task.chosen_by) for n, domain in domains.items()},
        recipe.train_of(name),
        all(spec.frozen for spec in specs),
    )


def control_of(run: Run, name: str, specs: Sequence[Expert], layers: str | None) -> tuple[Any, Any]:
    """The kind and the design of a control. Experts of several kinds have controls of the first kind of their site.

    Each expert counts with the largest rank that it tries.
    """
    words = {spec.kind for spec in specs}
    kind = KINDS[specs[0].kind] if len(words) == 1 else run.recipe.kind
    designs = [KINDS[spec.kind].design(spec.largest) for spec in specs]
    if name == "joint":
        return kind, kind.joint(designs)
    return kind, kind.wide(designs, [spec.layers for spec in specs], run.task.body, layers)


def trials_of(run: Run, name: str) -> list[Trial]:
    """Every combination of the learning rates and, for an expert, the values of its sweep."""
    plan, expert = plan_of(run, name), run.recipe.experts.get(name)
    tried = written_sweep(expert.sweep if expert else None)
    lr = plan.settings.lr
    rates = tried.pop("lr", None) or (lr if isinstance(lr, list) else [lr])
    found = []
    for lr in rates:
        for one in expert.trials if expert else [None]:
            values = [(key, shown(getattr(one, key))) for key in tried]
            state = "_".join([trial_at(lr), *(f"{key}-{value}" for key, value in values)])
            label = ", ".join([f"{lr:g}", *(f"{key} {value}" for key, value in values)])
            own = plan if one is None or not tried else replace(plan, design=plan.kind.design(one))
            found.append(Trial(own, lr, state, label))
    return found


def shown(value: Any) -> str:
    """A value of a sweep, as part of a file's name."""
    return "+".join(value) if isinstance(value, list) else f"{value:g}"


# --- training


def train_one(address: Address, name: str, report: Report) -> None:
    """Run all trials of one contender and publish the best by validation."""
    run = report.cached(open_run, address)
    train_trials(ExpertPart(run, name), trials_of(run, name), report)


def train_trials(part: ExpertPart, trials: Sequence[Trial], report: Report, start: Path | None = None) -> None:
    """Run trials and publish the best by validation. `start`: the folder of the expert that is trained further."""
    run = part.source
    drop_logs(run.dir, part.at, [trial.name for trial in trials])
    with run.task.watched(lambda domain, rows: report.watched(rows)):
        trainer = run.task.trainer(trials[0].plan)
    if part.name in run.recipe.experts:
        report_rows(run, trials[0].plan, trainer, report)
    report.begin(part.steps)
    outcomes: dict[str, float | None] = {}
    winner: tuple[Trained, Trial] | None = None  # the best alone: a state may be a whole model
    for turn, trial in enumerate(trials):
        try:
            found = train_at(part, trainer, trial, turn, report, start)
            outcomes[trial.label] = trainer.outcome(found.best)
            if winner is None or found.best < winner[0].best:
                winner = found, trial
        except NonFiniteError:
            if winner is None and turn + 1 == len(trials):
                raise
            outcomes[trial.label] = None  # a trial may diverge, as long as another one does not
    assert winner
    trained, best = winner
    made = trainer.made(best.plan, trained.state, trained.best)
    facts = {
        "grid": outcomes,
        "metrics": {**made.metrics, "step": trained.best_step},
        "timing": {"seconds": round(trained.seconds, 2)},
        "logs": run.dir.logged(part.at),
    }
    publish_expert(part, best, made, {"rows": trainer.rows(), **facts}, trained.state)
    run.dir.forget(part.at)
    report.end(f"{made.summary} at lr {best.label}")


def report_rows(run: Run, plan: Plan, trainer: Trainer, report: Report) -> None:
    """Report training rows that are cut, and warn of rows that spell special tokens."""
    if cuts := trainer.cuts():
        report.note(cuts)
    names = ["spelled", run.task.foundation.fingerprint, *map(name_of, plan.train.values())]
    rows = (row for rows in plan.train.values() for row in rows)
    if spelled := run.materials.prepared.value(names, lambda: spelling(rows, trainer.spelled)):
        report.warn(spelled)


def publish_expert(part: ExpertPart, trial: Trial, made: Made, facts: Facts, state: Mapping[str, Tensor]) -> None:
    """Publish the expert that a trial has made, with its record."""
    task, plan = part.source.task, trial.plan
    common = {
        "name": part.name,
        "stage_key": part.key,
        "seed": part.run.recipe.seed,
        "data": part.inputs()["data"],
        "lr": trial.lr,
        "trial": trial.label,
        **plan.kind.facts(plan.design),
        **task.foundation.told,
        **task.head_facts(plan),
    }
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())

    def write(folder: Path) -> None:
        plan.kind.save(folder, made.expert, task.foundation, common | facts, made.head)

    part.run.publish(part.at, write, size)


def train_at(
    part: ExpertPart, trainer: Trainer, trial: Trial, turn: int, report: Report, start: Path | None = None
) -> Trained:
    """Run one trial; all trials of a contender start from the same weights and see the same order of rows."""
    settings, plan = trial.plan.settings, trial.plan
    objective = trainer.continued(plan, trainer.values(plan, start)) if start else trainer.objective(plan)
    with training(part.run, part.at, trial.name, part.inputs(), report, turn * settings.steps) as (keeper, record):
        inputs = objective.parameters, objective.batch, objective.loss, objective.validate, settings, trial.lr
        shared = part.run.recipe.seed, keeper, objective.names
        return fit(*inputs, lambda row: record(trainer.logged(row)), *shared, scaled=objective.scaled)


# --- verifying


def verify_expert(run: Run, name: str) -> dict[str, Any]:
    """Read a published expert back over a fresh base and measure it on validation again."""
    if name not in run.recipe.trained:
        raise RecipeError(f"'{name}' is not trained here", expected=f"one of {', '.join(run.recipe.trained)}")
    folder = run.dir.part_at(name)

    def refuse(field: str, expected: str, got: str) -> None:
        what = "the expert does not do what its manifest says"
        hint = f"remove this folder and train it again: moesaic train-expert RECIPE --expert {name}"
        raise CompatibilityError(what, path=folder, field=field, expected=expected, got=got, hint=hint)

    return {"name": name, **run.task.verified(plan_of(run, name), folder, refuse), "folder": str(folder)}


def check_names(recipe: Recipe, names: list[str]) -> list[str]:
    """The named experts and controls, or all experts that are trained here; raises for an unknown name."""
    for name in names:
        if name not in recipe.trained and name not in recipe.trained_controls:
            expected = f"one of {', '.join(recipe.trained)}"
            raise RecipeError(f"no expert '{name}' is trained here", expected=expected)
    return names or recipe.trained
