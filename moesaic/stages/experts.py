"""Stage 2: the experts, and the controls that are trained like one (`joint`, `joint_wide`), side by side.

Every contender has the same recipe of data order, schedule and choice: the learning rate of best validation wins.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from moesaic.adapters import Design, Factors
from moesaic.adapters.blocks import Blocks
from moesaic.data.splits import take
from moesaic.errors import CompatibilityError, NonFiniteError, RecipeError
from moesaic.kinds import labels as classifying
from moesaic.kinds import texts as language
from moesaic.kinds.courses import Course, Plan, Whole
from moesaic.kinds.labels import LabelCourse
from moesaic.kinds.making import keep
from moesaic.kinds.mixed import take_out
from moesaic.kinds.texts import TextCourse
from moesaic.model.encoder import Encoder
from moesaic.recipe import Expert
from moesaic.runs.checkpoints import drop_logs, forget, refuse_changed, training
from moesaic.runs.jobs import Jobs, Report
from moesaic.runs.progress import Progress
from moesaic.runs.workshop import VALIDATION_ROWS, Address, Workshop, at_address
from moesaic.sections.layers import layer_range
from moesaic.sections.training import Train
from moesaic.train.loop import Trained, fit

CONTROLS = ("joint", "joint_wide")


CLASSIFIED_ROWS = 500
"""Rows with labels that settings are chosen by, at most: each says less than the many tokens of a text."""


@dataclass(frozen=True)
class Trial:
    """One training of a contender: its plan, its rate, what its state is called, and what it tries in words."""

    plan: Plan
    lr: float
    name: str
    told: str


def plan_of(workshop: Workshop, name: str) -> Plan:
    """An expert as the recipe has it; a control in the experts' shape, on all texts, its head learning if one does."""
    recipe, settings = workshop.recipe, workshop.recipe.train_of(name)
    names = [name] if name in recipe.experts else workshop.trained_experts()
    experts = [recipe.experts[n] for n in names]
    domains = {n: workshop.domains[n] for n in ([name] if name in recipe.experts else workshop.domains)}
    layers = experts[0].layers if len({e.layers for e in experts}) == 1 else None
    design = design_of(experts[0]) if name in recipe.experts else joint_design(workshop, name, experts, layers)
    most = CLASSIFIED_ROWS if recipe.labelled else VALIDATION_ROWS
    return Plan(
        design,
        layers,
        {n: domain.train for n, domain in domains.items()},
        {n: take(domain.validation, most) for n, domain in domains.items()},
        settings,
        all(e.head == "frozen" for e in experts),
    )


def trials_of(workshop: Workshop, name: str) -> list[Trial]:
    """Every combination of what is tried: learning rates, and for an expert what its sweep says."""
    plan, expert = plan_of(workshop, name), workshop.recipe.experts.get(name)
    sweep = expert.sweep if expert else None
    rates = (sweep and sweep.lr) or grid(plan.settings)
    tried = [key for key, values in sweep or () if values and key != "lr"]
    found = []
    for lr in rates:
        for one in expert.trials if expert else [None]:
            values = [(key, shown(getattr(one, key))) for key in tried]
            name_of, told = (
                [start, *(join.join(pair) for pair in values)]
                for start, join in ((f"lr-{lr!r}", "-"), (f"{lr:g}", " "))
            )
            own = plan if one is None or not tried else replace(plan, design=adapter_of(one))
            found.append(Trial(own, lr, "_".join(name_of), ", ".join(told)))
    return found


def shown(value: Any) -> str:
    """A setting that is tried, as part of a file's name."""
    return "+".join(value) if isinstance(value, list) else f"{value:g}"


def course_of(workshop: Workshop, plan: Plan) -> Course:
    """How a contender is taught: by what its rows are."""
    return (LabelCourse if workshop.recipe.labelled else TextCourse)(workshop, plan)


def design_of(expert: Expert) -> Design | Blocks | Whole:
    """What the recipe says of an expert before it has values."""
    if expert.kind == "model":
        return Whole()
    return Blocks(anchor=expert.anchor) if expert.kind == "ffn" else adapter_of(expert)


def adapter_of(expert: Expert) -> Design:
    """What the recipe says of an expert's adapter."""
    assert expert.kind in ("lora", "tt_lora")
    own = expert.factors
    factors = (
        own if isinstance(own, str | int) else {target: Factors(*map(tuple, sides)) for target, sides in own.items()}
    )
    return Design(expert.kind, expert.rank, expert.scale, [*expert.targets], factors, expert.init)


def joint_design(workshop: Workshop, name: str, experts: list[Expert], layers: str | None) -> Design | Blocks | Whole:
    """A control, of the experts' kind; `joint_wide` has as many parameters as all experts together."""
    match workshop.recipe.site:
        case "model":
            return Whole()
        case "ffn":
            return joint_blocks(workshop, name, experts, layers)
        case "linear":
            return joint_adapter(workshop, name, experts, layers)


def joint_blocks(workshop: Workshop, name: str, experts: list[Expert], layers: str | None) -> Blocks:
    """The blocks of a control, without an anchor, as it answers alone; of `joint_wide` as wide as all experts' are
    together, or where these have other layers, wide enough for no fewer parameters.
    """
    if name == "joint":
        return Blocks()
    config = workshop.base.decoder.config
    depths = [len(layer_range(e.layers, config.num_layers)) for e in experts]
    return Blocks(inner=-(-sum(depths) * config.intermediate_size // len(layer_range(layers, config.num_layers))))


def joint_adapter(workshop: Workshop, name: str, experts: list[Expert], layers: str | None) -> Design:
    """The adapter of a control: of the experts' kind, or lora where they have several, and of the largest rank tried.

    `joint_wide` has as many parameters as all experts together: of lora the sum of their ranks; where there are tensor
    trains the smallest rank with no fewer parameters, its factors found for it, as given ones may not admit the rank.
    """
    experts = [max(e.trials, key=lambda trial: trial.rank) for e in experts]
    kinds = {e.kind for e in experts}
    kind: Literal["lora", "tt_lora"] = "tt_lora" if kinds == {"tt_lora"} else "lora"
    own = [adapter_of(e) for e in experts]
    joint = Design(
        kind,
        max(e.rank for e in experts),
        max(e.scale for e in experts),
        sorted({target for e in experts for target in e.targets}),
        own[0].factors if all(one.factors == own[0].factors for one in own) else "auto",
        own[0].init if len({one.init for one in own}) == 1 else "zero",
    )
    if name == "joint":
        return joint
    if kinds == {"lora"}:
        return replace(joint, rank=sum(e.rank for e in experts))
    body = workshop.body
    depth = body.config.num_layers
    room = sum(one.num_parameters(body, layer_range(e.layers, depth)) for one, e in zip(own, experts, strict=True))
    return replace(joint, factors="auto").of_size(room, body, layer_range(layers, depth))


def train_experts(workshop: Workshop, names: list[str], progress: Progress, jobs: Jobs) -> None:
    """Train those of the contenders that are not finished, longest first."""
    take_out(workshop, progress)
    work: dict[str, Callable[[Report], Any]] = {}
    for name in names:
        if workshop.finished(workshop.part_at(name), key_of(workshop, name), progress):
            forget(workshop, workshop.part_at(name))
            progress.note(f"{name}: finished, skipped")
        else:
            refuse_changed(workshop, workshop.part_at(name), inputs_of(workshop, name), progress.warn)
            work[name] = partial(train_one, workshop.address, name)
    longest = sorted(work, key=lambda name: -steps_of(workshop, name))
    jobs.run({name: work[name] for name in longest})


def key_of(workshop: Workshop, name: str) -> str:
    return workshop.key("expert" if name in workshop.recipe.experts else name, **inputs_of(workshop, name))


def inputs_of(workshop: Workshop, name: str) -> dict[str, Any]:
    """All that a contender's training depends on, as plain data."""
    recipe = workshop.recipe
    names = [name] if name in recipe.experts else workshop.trained_experts()
    return {
        "experts": {n: recipe.experts[n].model_dump(mode="json", exclude={"keywords", "train", "data"}) for n in names},
        "train": recipe.train_of(name).model_dump(mode="json"),
        "router": {"prompt_tokens": recipe.router.prompt_tokens},
        "data": digests(workshop, name),
        "base": workshop.base_fingerprint,
        **({"labels": labelled(workshop, name)} if recipe.labelled else {}),
    }


def labelled(workshop: Workshop, name: str) -> dict[str, Any]:
    """What beside texts decides on an expert that classifies: labels and metrics of its tasks, the state it reads."""
    tasks = [n for n in workshop.domains if n == name or name in CONTROLS]
    own = {n: [workshop.domains[n].labels, classifying.metrics_of(workshop, n)] for n in tasks}
    return {"tasks": own, "pool": workshop.pool}


def digests(workshop: Workshop, name: str) -> list[str]:
    """The texts a contender learns from: its own domain's, or for a control those of all domains."""
    return [domain.digest for n, domain in workshop.domains.items() if n == name or name in CONTROLS]


def steps_of(workshop: Workshop, name: str) -> int:
    """Steps of all trainings of a contender together."""
    return workshop.recipe.train_of(name).steps * len(trials_of(workshop, name))


def grid(settings: Train) -> list[float]:
    return settings.lr if isinstance(settings.lr, list) else [settings.lr]


def train_one(address: Address, name: str, report: Report) -> None:
    """Train one contender with everything that is tried and publish the best by validation."""
    workshop = at_address(*address)
    trials, part = trials_of(workshop, name), workshop.part_at(name)
    drop_logs(workshop, part, [trial.name for trial in trials])
    course = course_of(workshop, trials[0].plan)
    report.begin(steps_of(workshop, name))
    outcomes: dict[str, float | None] = {}
    kept: tuple[Trained, Trial] | None = None  # the best alone: a state may be a whole model
    for turn, trial in enumerate(trials):
        try:
            found = train_at(workshop, name, course, trial, turn, report)
            outcomes[trial.told] = course.outcome(found.best)
            if kept is None or found.best < kept[0].best:
                kept = found, trial
        except NonFiniteError:
            if kept is None and turn + 1 == len(trials):
                raise
            outcomes[trial.told] = None  # a trial that diverges has lost, as long as another one has not
    assert kept
    trained, best = kept
    made = course.made(best.plan, trained.state, trained.best)
    facts = {
        "name": name,
        "stage_key": key_of(workshop, name),
        "seed": workshop.recipe.seed,
        "data": digests(workshop, name),
        "rows": course.rows(),
        "lr": best.lr,
        "grid": outcomes,
        "metrics": {**made.metrics, "step": trained.best_step},
        "timing": {"seconds": round(trained.seconds, 2)},
        **({"anchor": True} if isinstance(best.plan.design, Blocks) and best.plan.design.anchor else {}),
        **workshop.foundation.told,
    }
    if made.head:
        family = workshop.body.config.family if isinstance(workshop.body, Encoder) else "decoder"
        facts["head"] = {"pool": workshop.pool, "family": family, "trained": not best.plan.frozen}
    size = sum(tensor.numel() * tensor.element_size() for tensor in trained.state.values())
    workshop.publish(part, lambda folder: keep(folder, workshop, made, facts), size)
    forget(workshop, part)
    report.end(f"{made.told} at lr {best.told}")


def train_at(workshop: Workshop, name: str, course: Course, trial: Trial, turn: int, report: Report) -> Trained:
    """One training of one contender; all of them start from the same weights and see the same order of rows."""
    settings, part, inputs = trial.plan.settings, workshop.part_at(name), inputs_of(workshop, name)
    lesson = course.lesson(trial.plan)
    with training(workshop, part, trial.name, inputs, report, turn * settings.steps) as (keeper, record):
        return fit(
            lesson.parameters,
            lesson.batch,
            lesson.loss,
            lesson.validate,
            settings,
            trial.lr,
            lambda row: record(course.logged(row)),
            workshop.recipe.seed,
            keeper,
            lesson.names,
        )


def verify_expert(workshop: Workshop, name: str) -> dict[str, Any]:
    """Read a published expert back over a fresh base and measure it on validation again."""
    if name not in workshop.trained_experts():
        raise RecipeError(f"'{name}' is not trained here", expected=f"one of {', '.join(workshop.trained_experts())}")
    plan, folder = plan_of(workshop, name), workshop.part_at(name)

    def refuse(field: str, expected: str, got: str) -> None:
        raise CompatibilityError(
            "the expert does not do what its manifest says",
            path=folder,
            field=field,
            expected=expected,
            got=got,
            hint=f"remove this folder and train it again: moesaic train-expert RECIPE --expert {name}",
        )

    verified = classifying.verified if workshop.recipe.labelled else language.verified
    return {"name": name, **verified(workshop, plan, folder, refuse), "folder": str(folder)}


def check_names(workshop: Workshop, names: list[str]) -> list[str]:
    """The experts named, or all that are trained here."""
    known = workshop.trained_experts()
    for name in names:
        if name not in known and name not in workshop.recipe.trained_controls:
            raise RecipeError(f"no expert '{name}' is trained here", expected=f"one of {', '.join(known)}")
    return names or known
