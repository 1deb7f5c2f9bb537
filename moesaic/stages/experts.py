"""Stage 2: the experts, and the controls that are trained like one (`joint`, `joint_wide`), side by side.

Every contender has the same recipe of data order, schedule and choice: the learning rate of best validation wins.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from moesaic.adapters import LoRA, LowRankLinear, attach
from moesaic.adapters.lora import detach
from moesaic.data.batches import Schedule, Tokens, pad
from moesaic.data.rows import Example
from moesaic.data.splits import take
from moesaic.errors import CompatibilityError, NonFiniteError, RecipeError
from moesaic.model.decoder import Decoder
from moesaic.recipe import Train, layer_range
from moesaic.routing import Gates
from moesaic.stages.jobs import Jobs, Report
from moesaic.stages.progress import Progress
from moesaic.stages.training import drop_logs, forget, refuse_changed, training
from moesaic.stages.workshop import VALIDATION_ROWS, Address, Workshop, at_address
from moesaic.train.language import loss_of, mean_nats
from moesaic.train.loop import Trained, fit
from moesaic.weights.adapter import load_expert, save_expert

CONTROLS = ("joint", "joint_wide")


@dataclass(frozen=True)
class Plan:
    """What one contender is: the shape of its adapter, its texts, its training settings."""

    rank: int
    alpha: float
    targets: list[str]
    layers: str | None
    train: list[list[Example]]  # by domain
    validation: list[list[Example]]
    settings: Train


def plan_of(workshop: Workshop, name: str) -> Plan:
    """An expert as the recipe has it; a control in the experts' shape, on all texts (`joint_wide`: with all ranks)."""
    recipe, settings = workshop.recipe, workshop.recipe.train_of(name)
    names = [name] if name in recipe.experts else workshop.trained_experts()
    experts = [recipe.experts[n] for n in names]
    domains = [workshop.domains[name]] if name in recipe.experts else [*workshop.domains.values()]
    rank = sum(e.rank for e in experts) if name == "joint_wide" else max(e.rank for e in experts)
    scale = max((e.alpha or 2.0 * e.rank) / e.rank for e in experts)
    targets: list[str] = sorted({target for e in experts for target in e.targets})
    layers = experts[0].layers if len({e.layers for e in experts}) == 1 else None
    return Plan(
        rank,
        scale * rank,
        targets,
        layers,
        [domain.train for domain in domains],
        [take(domain.validation, VALIDATION_ROWS) for domain in domains],
        settings,
    )


def train_experts(workshop: Workshop, names: list[str], progress: Progress, jobs: Jobs) -> None:
    """Train those of the contenders that are not finished, longest first."""
    work: dict[str, Callable[[Report], Any]] = {}
    for name in names:
        if workshop.finished(workshop.part_at(name), key_of(workshop, name), progress):
            forget(workshop, workshop.part_at(name))
            progress.note(f"{name}: finished, skipped")
        else:
            refuse_changed(workshop, workshop.part_at(name), inputs_of(workshop, name), progress.warn)
            work[name] = partial(train_one, workshop.address, name)
    longest = sorted(work, key=lambda name: -steps_of(workshop.recipe.train_of(name)))
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
    }


def digests(workshop: Workshop, name: str) -> list[str]:
    """The texts a contender learns from: its own domain's, or for a control those of all domains."""
    return [domain.digest for n, domain in workshop.domains.items() if n == name or name in CONTROLS]


def steps_of(settings: Train) -> int:
    return settings.steps * len(grid(settings))


def grid(settings: Train) -> list[float]:
    return settings.lr if isinstance(settings.lr, list) else [settings.lr]


def train_one(address: Address, name: str, report: Report) -> None:
    """Train one contender at each learning rate of its grid and publish the best by validation."""
    workshop = at_address(*address)
    plan, part = plan_of(workshop, name), workshop.part_at(name)
    drop_logs(workshop, part, grid(plan.settings))
    train, held_out = rows_of(workshop, plan)
    report.begin(steps_of(plan.settings))
    outcomes: dict[str, float | None] = {}
    tried: list[tuple[Trained, float]] = []
    for turn, lr in enumerate(grid(plan.settings)):
        try:
            tried.append((train_at(workshop, name, plan, train, held_out, lr, turn, report), lr))
            outcomes[f"{lr:g}"] = tried[-1][0].best
        except NonFiniteError:
            if not tried and turn + 1 == len(grid(plan.settings)):
                raise
            outcomes[f"{lr:g}"] = None  # a rate that diverges has lost, as long as another one has not
    trained, lr = min(tried, key=lambda one: one[0].best)
    decoder = adapted(workshop, plan)
    decoder.load_state_dict(trained.state, strict=False)
    facts = {
        "name": name,
        "stage_key": key_of(workshop, name),
        "seed": workshop.recipe.seed,
        "data": digests(workshop, name),
        "rows": {
            "train": sum(map(len, train)),
            "validation": len(held_out),
            "truncated": sum(row.truncated for rows in (*train, held_out) for row in rows),
        },
        "lr": lr,
        "grid": outcomes,
        "metrics": {"validation_nats": trained.best, "step": trained.best_step},
        "timing": {"seconds": round(trained.seconds, 2)},
    }
    lora = detach(decoder, plan.rank, plan.alpha)
    size = sum(tensor.numel() * tensor.element_size() for tensor in trained.state.values())
    workshop.publish(part, lambda folder: save_expert(folder, lora, workshop.base_fingerprint, facts), size)
    forget(workshop, part)
    report.end(f"validation {trained.best:.3f} nats a token at lr {lr:g}")


def rows_of(workshop: Workshop, plan: Plan) -> tuple[list[list[Tokens]], list[Tokens]]:
    """What a training learns from, by domain, and what it is chosen by."""
    length = plan.settings.length
    held_out = [row for texts in plan.validation for row in workshop.encoded(texts, length)]
    return [workshop.encoded(texts, length) for texts in plan.train], held_out


def train_at(
    workshop: Workshop,
    name: str,
    plan: Plan,
    train: list[list[Tokens]],
    held_out: list[Tokens],
    lr: float,
    turn: int,
    report: Report,
) -> Trained:
    """One training of one contender at one learning rate; every rate starts from the same weights and data order."""
    settings, decoder = plan.settings, adapted(workshop, plan)
    schedule = Schedule(even(train), settings.batch, workshop.recipe.seed)
    part, inputs = workshop.part_at(name), inputs_of(workshop, name)
    with training(workshop, part, lr, inputs, report, turn * settings.steps) as (keeper, record):
        return fit(
            {name: p for name, p in decoder.named_parameters() if p.requires_grad},
            lambda step: pad(schedule(step)),
            loss_of(decoder, alone),
            lambda: mean_nats(decoder, alone, held_out, settings.batch),
            settings,
            lr,
            record,
            workshop.recipe.seed,
            keeper,
            schedule.names,
        )


def alone(rows: int) -> Gates:
    """All rows on the only expert there is."""
    return Gates.one(0, rows, 1, torch.zeros(1))


def adapted(workshop: Workshop, plan: Plan) -> Decoder:
    """A frozen base with one fresh adapter, the same at every call."""
    decoder = workshop.fresh_base().decoder
    decoder.requires_grad_(False)
    layers = layer_range(plan.layers, decoder.config.num_layers)
    generator = torch.Generator().manual_seed(workshop.recipe.seed)
    attach(decoder, [LoRA.fresh(decoder, plan.rank, plan.alpha, plan.targets, layers, generator)])
    return decoder


def even(domains: list[list[Tokens]]) -> list[Tokens]:
    """All rows, small domains repeated, so that a joint training sees as many rows of every domain."""
    most = max(len(rows) for rows in domains)
    return [rows[i % len(rows)] for rows in domains for i in range(most)]


def verify_expert(workshop: Workshop, name: str) -> dict[str, Any]:
    """Read a published expert back over a fresh base and measure its validation loss again, beside the base's."""
    if name not in workshop.trained_experts():
        raise RecipeError(f"'{name}' is not trained here", expected=f"one of {', '.join(workshop.trained_experts())}")
    plan, folder = plan_of(workshop, name), workshop.part_at(name)
    stored = load_expert(folder, workshop.base_fingerprint)
    decoder = workshop.fresh_base().decoder
    attach(decoder, [stored.lora])
    rows = [row for texts in plan.validation for row in workshop.encoded(texts, plan.settings.length)]
    found = mean_nats(decoder, alone, rows, plan.settings.batch)
    off = mean_nats(decoder, lambda n: Gates.one(-1, n, 1, torch.zeros(1)), rows, plan.settings.batch)
    said = stored.manifest["metrics"]["validation_nats"]
    untouched = [
        path for path, module in decoder.named_modules() if isinstance(module, LowRankLinear) and not module.b.any()
    ]
    if abs(found - said) > 1e-4 * said or untouched:
        raise CompatibilityError(
            "the expert does not do what its manifest says",
            path=folder,
            field="metrics.validation_nats",
            expected=f"{said:.6f}",
            got=f"{found:.6f}" + (f", and {untouched[0]} changes nothing" if untouched else ""),
            hint=f"remove this folder and train it again: moesaic train-expert RECIPE --expert {name}",
        )
    return {
        "name": name,
        "validation_nats": found,
        "manifest": said,
        "base": off,
        "gain": off - found,
        "folder": str(folder),
    }


def check_names(workshop: Workshop, names: list[str]) -> list[str]:
    """The experts named, or all that are trained here."""
    known = workshop.trained_experts()
    for name in names:
        if name not in known and name not in CONTROLS:
            raise RecipeError(f"no expert '{name}' is trained here", expected=f"one of {', '.join(known)}")
    return names or known


def part_folders(workshop: Workshop) -> dict[str, Path]:
    """Every expert's folder, trained here or elsewhere."""
    return {
        name: Path(expert.path) if expert.path else workshop.part_at(name)
        for name, expert in workshop.recipe.experts.items()
    }
