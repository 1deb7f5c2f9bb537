"""Gates of layers as a part of a run: made from training rows of each expert, then trained through the mixture.

Knows nothing about how experts were trained.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moesaic.adapters.feedforward import ffns
from moesaic.artefacts.router import INFO, StoredRouter, load_router, save_router
from moesaic.compose.token_gates import GATES, Reader, Texts
from moesaic.data.batches import Schedule, Tokens, by_length
from moesaic.errors import MoesaicError, RecipeError
from moesaic.evaluate.sparse_layers import layer_utilisation
from moesaic.files import digest, write_json
from moesaic.kinds.gates import plain
from moesaic.model.decoder import Decoder
from moesaic.model.mixture import Routed
from moesaic.model.token import TokenMixture
from moesaic.routing import Routing, Selection
from moesaic.routing.routers import GatesRouter
from moesaic.runs.checkpoints import drop_logs, training, trial_at
from moesaic.runs.directory import RunDir
from moesaic.runs.jobs import Report
from moesaic.runs.part import Part, Work
from moesaic.sections.gates import TokenGates
from moesaic.sections.routers import GATES as GATED
from moesaic.sections.routers import RouterSpec
from moesaic.sections.training import Train
from moesaic.stages.experts import folders_of
from moesaic.stages.prompt_forms import SPLITS, prompts_of
from moesaic.stages.routers import RouterPart, owners, rows_of, specs, versions
from moesaic.tasks import Address, Run, open_run
from moesaic.tasks.task import even
from moesaic.train.gate_training import RULES, GateTraining, gates_in, unbiased
from moesaic.train.language import mean_nats
from moesaic.train.loop import fit
from moesaic.train.routers import scored

TEXTS = 100
"""The most rows of an expert that gates are made from before their training."""
SHARE = 0.05
"""Usual steps of a training, as a share of those of all experts together."""
VALIDATIONS = 5
JUDGED = 50
"""The most validation prompts of an expert whose routing is reported."""


class GatesPart(Part):
    """The gates of a mixture's layers."""

    run: RunDir
    stage = "gates"

    def __init__(self, run: Run, name: str, spec: RouterSpec):
        super().__init__(run.dir, run.dir.router_at(name))
        self.source, self.name, self.spec = run, name, spec

    @property
    def title(self) -> str:
        return self.name if self.name == "router" else f"router {self.name}"

    @property
    def gates(self) -> TokenGates:
        assert self.spec.gates is not None
        return self.spec.gates

    @property
    def settings_of_training(self) -> Train | None:
        """The settings of the training; None without one."""
        recipe, gates = self.run.recipe, self.gates
        steps = gates.steps
        if steps is None:
            steps = math.ceil(SHARE * sum(recipe.train_of(name).steps for name in recipe.experts))
        own = {"steps": steps, "lr": gates.lr, "evaluate_every": max(1, steps // VALIDATIONS), "patience": 0}
        return recipe.train.model_copy(update=own) if steps else None

    @property
    def steps(self) -> int:
        settings = self.settings_of_training
        return settings.steps if settings else 0

    def needs(self) -> tuple[Path, ...]:
        return (self.source.models.base_at, *folders_of(self.source).values())

    def inputs(self) -> dict[str, Any]:
        """The experts, the gates' section, their training, the texts and the base."""
        recipe, settings = self.run.recipe, self.settings_of_training
        rows = ((name, split) for name in recipe.experts for split in SPLITS)
        return {
            "parts": dict(versions(self.source)),
            "router": self.spec.model_dump(mode="json"),
            "train": settings.model_dump(mode="json") if settings else {"length": recipe.train.length},
            "prompt_tokens": recipe.router.prompt_tokens,
            "data": digest([e.told for name, split in rows for e in prompts_of(self.source, name, split)]),
            "base": self.source.task.foundation.fingerprint,
        }

    def missing(self) -> MoesaicError:
        hint = "train it first: moesaic train-router RECIPE"
        return RecipeError("there is no router yet", path=self.at, hint=hint)

    def work(self) -> Work | None:
        return partial(make_gates, self.source.address, self.name)


def router_part(run: Run, name: str, spec: RouterSpec) -> Part:
    """A router as a part: gates of layers, or a router that decides about prompts."""
    return (GatesPart if spec.kind == GATED else RouterPart)(run, name, spec)


def make_gates(address: Address, name: str, report: Report) -> None:
    """Make the gates of a mixture, and publish them with their record."""
    run = report.cached(open_run, address)
    part = GatesPart(run, name, specs(run)[name])
    gates, spec, names, task = part.gates, part.spec, tuple(run.recipe.experts), run.task
    report.begin(part.steps)
    rows = {expert: rows_of(run, expert, "train", sys.maxsize) for expert in names}
    held_out = [row for expert in names for row in rows_of(run, expert, "validation", task.chosen_by)]
    decoder, read = run.models.fresh_base(run.task.compute).decoder, task.read_experts(folders_of(run))
    experts = [read[expert] for expert in names]
    router = GatesRouter.of(rows_before(run, gates, decoder, rows), spec.chosen(len(names)), spec.renormalise)
    facts: dict[str, Any] = {"training_tokens": 0}
    if settings := part.settings_of_training:
        task.kind.route_inside(decoder, experts, router, balanced=gates.balance in RULES)
        before = validated(decoder, held_out, settings.batch)
        every = even([*rows.values()])
        trained = train(part, decoder, every, held_out, settings, report)
        facts = {"training_tokens": tokens_of(every, settings, run.recipe.seed), "nats_before": before}
        if trained.best < before:
            router = GatesRouter.of(router.by_path | trained.rows, router.k, router.renormalise)
    stored = StoredRouter(router.eval(), spec.kind, names, "shares", Selection(kind="soft"), {})
    mixture = task.kind.join_inside(run.models.fresh_base(run.task.compute), experts, stored)
    layers = layer_utilisation(mixture.decoder, held_out, run.recipe.evaluate.batch)
    judged = [rows_of(run, expert, "validation", JUDGED) for expert in names]
    routing = route(run, mixture, [row for some in judged for row in some])
    metrics = scored(routing.logits, owners(map(len, judged)), len(names))
    metrics |= {"nats": validated(mixture.decoder, held_out, run.recipe.evaluate.batch)}
    metrics |= {"least_load": min(layer["least_load"] for layer in layers)}
    info = {"router": spec.model_dump(mode="json"), "validation": metrics, "layers": layers, **facts}
    publish(part, stored, metrics, info)
    report.end(f"validation {metrics['nats']:.3f} nats a token, least load {metrics['least_load']:.2f} of the mean")


def rows_before(
    run: Run, gates: TokenGates, decoder: Decoder, rows: Mapping[str, Sequence[Tokens]]
) -> dict[str, Tensor]:
    """The rows of every gate before training, by the paths of their slots."""
    way, generator = GATES[gates.start], torch.Generator().manual_seed(run.recipe.seed)
    ends = way.encode is Reader.marked  # mergekit's gates read prompts, ours all that a gate will see
    texts = [Texts([row.ids[: row.prompt if ends else None] for row in some[:TEXTS]]) for some in rows.values()]
    made = way.rows(Reader(decoder, run.models.base.tokenizer, generator), texts)
    return dict(zip(ffns(decoder), made, strict=True))


def validated(decoder: Decoder, rows: Sequence[Tokens], batch: int) -> float:
    with unbiased(decoder):
        return mean_nats(decoder, plain, rows, batch)


@dataclass(frozen=True)
class Trained:
    """The rows of gates after their training, and their best validation."""

    rows: dict[str, Tensor]
    best: float


def train(
    part: GatesPart,
    decoder: Decoder,
    rows: Sequence[Tokens],
    held_out: Sequence[Tokens],
    settings: Train,
    report: Report,
) -> Trained:
    """Train the gates of a decoder, whose slots carry the experts."""
    gates, seed, trial = part.gates, part.run.recipe.seed, trial_at(part.gates.lr)
    how = gates.balance, gates.strong, seed, settings.accumulate
    lesson = GateTraining(decoder, rows, held_out, settings.batch, *how)
    drop_logs(part.run, part.at, [trial])
    with training(part.run, part.at, trial, part.inputs(), report) as (keeper, record):
        inputs = lesson.parameters, lesson.batch, lesson.loss, lesson.validate, settings, gates.lr, record, seed
        found = fit(*inputs, keeper, lesson.schedule.names, after=lesson.after)
    return Trained(gates_in(found.state), found.best)


def tokens_of(rows: Sequence[Tokens], settings: Train, seed: int) -> int:
    """The number of tokens that a training reads."""
    schedule = Schedule(rows, settings.batch, seed)
    return sum(len(row.ids) - 1 for step in range(settings.steps * settings.accumulate) for row in schedule(step))


def publish(part: GatesPart, stored: StoredRouter, metrics: Mapping[str, float], info: Mapping[str, Any]) -> None:
    """Publish a router with its record, and drop the state of its training."""
    run = part.source
    facts = {
        "stage_key": part.key,
        "prompt_tokens": run.recipe.router.prompt_tokens,
        "seed": run.recipe.seed,
        "metrics": {f"validation_{key}": value for key, value in metrics.items()},
        "logs": run.dir.logged(part.at),
        **run.task.foundation.told,
    }

    def write(folder: Path) -> None:
        write_json(folder / INFO, dict(info))
        save_router(folder, stored, run.task.foundation.fingerprint, facts)

    part.run.publish(part.at, write, sum(t.numel() * t.element_size() for t in stored.router.state_dict().values()))
    part.run.forget(part.at)


# --- decisions about prompts


def mixture_with(run: Run, name: str) -> TokenMixture:
    """The mixture of a run's experts whose layers have the gates with this name."""
    stored = load_router(run.dir.router_at(name), run.task.foundation.fingerprint)
    experts = run.task.read_experts(folders_of(run))
    return run.task.kind.join_inside(
        run.models.fresh_base(run.task.compute), [experts[one] for one in stored.names], stored
    )


@torch.inference_mode()
def route(run: Run, mixture: Routed, rows: Sequence[Any]) -> Routing:
    """The decisions of a mixture about the prompts of rows, in their order."""
    parts, order = list[Routing](), list[int]()
    for some in by_length([row.prompt for row in rows], run.recipe.evaluate.batch):
        parts.append(mixture.route(run.task.prompts([rows[index] for index in some])))
        order += some
    return Routing.cat(parts)[torch.tensor(order).argsort()]
