"""The tasks of a recipe learned one after another, by several strategies, as parts of a run; and their comparison.

The experts of the recipe are the tasks, in its order. `sequential` trains one expert on one task after another;
`replay` mixes a tenth of the earlier tasks' rows into each training; `isolated` trains an expert for each task and,
after each, a router over the experts so far; `oracle` has the same experts, and for each row the one of its own task.
Knows nothing about how figures follow from scores.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from moesaic.artefacts.router import load_router
from moesaic.compose.mixture import assemble
from moesaic.data.splits import take
from moesaic.errors import MoesaicError, RecipeError
from moesaic.evaluate import continual
from moesaic.evaluate.score import score
from moesaic.evaluate.statistics import UNSEEN, Judged, Means, bounds
from moesaic.files import digest, read_sealed, write_sealed
from moesaic.recipe import Recipe
from moesaic.routing.controls import oracle
from moesaic.runs.checkpoints import trial_at
from moesaic.runs.directory import RunDir
from moesaic.runs.jobs import Jobs, Report
from moesaic.runs.machine import machine
from moesaic.runs.part import Part, Work
from moesaic.runs.progress import Progress
from moesaic.stages.experts import ExpertPart, Trial, folders_of, plan_of, train_trials
from moesaic.stages.routers import RouterPart, specs
from moesaic.stages.through_mixture import decided
from moesaic.tasks import Address, Run, open_run
from moesaic.tasks.task import Plan

REPLAYED = {"sequential": 0.0, "replay": 0.1}
"""The strategies that train one expert further -> the share of each earlier task's rows that they train on again."""
STRATEGIES = (*REPLAYED, "isolated", "oracle")
LEVEL = 0.95
RESAMPLES = 2000


def require_sequence(recipe: Recipe) -> None:
    """Refuse a recipe whose experts are not tasks that one expert can learn one after another."""
    experts = {name: recipe.experts[name] for name in recipe.experts}
    if len(experts) < 2:
        raise RecipeError("one task is no sequence", field="experts", expected="2 or more", got=", ".join(experts))
    if recipe.classifying:
        hint = "give data without labels"
        raise RecipeError("rows with labels are not learned in sequence", field="experts", hint=hint)
    if recipe.mixture.level != "sequence":
        raise RecipeError("routers are retrained to decide on prompts", field="mixture.level", expected="sequence")
    if recipe.router.groups:
        raise RecipeError("groups name tasks that come later", field="router.groups", hint="take another router")
    first = next(iter(experts))
    for name, expert in experts.items():
        if name not in recipe.trained:
            hint = "give it data and no path"
            raise RecipeError("a task that is not trained here", field=f"experts.{name}", hint=hint)
        if expert.sweep:
            hint = "give lr a list of rates, or one shape"
            raise RecipeError("all tasks have one shape", field=f"experts.{name}.sweep", hint=hint)
        shape, other = (one.model_dump(exclude={"data", "keywords", "train"}) for one in (experts[first], expert))
        if shape != other:
            what, expected = "one expert cannot learn tasks of several shapes", f"that of experts.{first}"
            raise RecipeError(what, field=f"experts.{name}", expected=expected)
    if not recipe.kind.shares_trunk:
        raise RecipeError(f"{recipe.kind.word} experts are not trained further", field="experts", expected="adapters")


# --- one expert, task after task


def label_of(strategy: str, task: str) -> str:
    """The name of a strategy's expert after a task."""
    return f"{strategy}-{task}"


class SequencePart(ExpertPart):
    """The expert of a strategy after the task `index`, trained further from the one after the task before."""

    def __init__(self, run: Run, strategy: str, index: int):
        tasks = [*run.recipe.experts]
        super().__init__(run, label_of(strategy, tasks[index]))
        self.strategy, self.index, self.stage = strategy, index, "sequence"
        self.previous = folder_after(run, strategy, index - 1)

    def needs(self) -> tuple[Path, ...]:
        return (self.source.models.base_at, self.previous)

    @cached_property
    def plan(self) -> Plan:
        """The plan of the task's expert, on its rows and those that are replayed."""
        tasks = [*self.run.recipe.experts]
        task, share, domains = tasks[self.index], REPLAYED[self.strategy], self.source.materials.domains
        own, past = plan_of(self.source, task), [domains[name] for name in tasks[: self.index]]
        train, held_out = [*own.train[task]], [*own.validation[task]]
        for domain in past:
            train += take(domain.train, math.ceil(share * len(domain.train)))
            some = take(domain.validation, self.source.task.chosen_by)
            held_out += take(some, math.ceil(share * len(some)))
        # Under one name, so that the few rows that are replayed are not repeated until they are as many.
        return replace(own, train={task: train}, validation={task: held_out})

    @property
    def trials(self) -> list[Trial]:
        lr = self.plan.settings.lr
        rates = lr if isinstance(lr, list) else [lr]
        return [Trial(self.plan, rate, trial_at(rate), f"{rate:g}") for rate in rates]

    @property
    def steps(self) -> int:
        return self.plan.settings.steps * len(self.trials)

    def inputs(self) -> dict[str, Any]:
        """The expert before, the training and its rows, replayed ones included, and the base."""
        recipe, task = self.run.recipe, [*self.run.recipe.experts][self.index]
        apart = {"keywords", "train", "data"}
        rows = [row for some in (self.plan.train, self.plan.validation) for row in some[task]]
        return {
            "before": self.run.identity(self.previous),
            "experts": {task: recipe.experts[task].model_dump(mode="json", exclude=apart)},
            "train": recipe.train_of(task).model_dump(mode="json"),
            "router": {"prompt_tokens": recipe.router.prompt_tokens},
            "data": [digest([row.told for row in rows])],
            "base": self.source.task.foundation.fingerprint,
            **self.source.task.foundation.precision,
        }

    def missing(self) -> MoesaicError:
        return RecipeError(f"there is no '{self.name}' yet", path=self.at, hint="moesaic continual RECIPE")

    def work(self) -> Work | None:
        return partial(train_further, self.source.address, self.strategy, self.index)


def train_further(address: Address, strategy: str, index: int, report: Report) -> None:
    """Train the expert of a strategy on its next task."""
    part = SequencePart(report.cached(open_run, address), strategy, index)
    train_trials(part, part.trials, report, part.previous)


def folder_after(run: Run, strategy: str, index: int) -> Path:
    """The folder of a strategy's expert after a task; after the first, every strategy has that task's own expert."""
    task = [*run.recipe.experts][index]
    return run.dir.part_at(label_of(strategy, task) if index else task)


def sequences(run: Run) -> list[SequencePart]:
    """All trainings that continue another one."""
    return [SequencePart(run, strategy, i) for strategy in REPLAYED for i in range(1, len(run.recipe.experts))]


# --- an expert for each task


def known_after(run: Run, index: int) -> Run:
    """The run as it is after a task: with the experts so far, and the rows of all tasks."""
    return open_run(replace(run.address, first=index + 1), run.models)


def router_after(run: Run, index: int) -> RouterPart:
    """The router over the experts so far, trained on their tasks alone."""
    known = known_after(run, index)
    return RouterPart(known, label_of("after", [*run.recipe.experts][index]), specs(known)["router"])


def trainings(run: Run) -> dict[str, Path]:
    """The paths of all trainings of a sequence, by their names on the command line."""
    routers = (label_of("after", task) for task in run.recipe.experts)
    return {part.name: part.at for part in sequences(run)} | {name: run.dir.router_at(name) for name in routers}


# --- the comparison


class Isolated(NamedTuple):
    """The scores of isolated experts after a task, by the router and by the oracle, and the router's accuracy."""

    routed: Judged
    oracle: Judged
    accuracy: float


class ContinualPart(Part):
    """The comparison of all strategies."""

    run: RunDir
    name = stage = "continual"
    is_folder = False

    def __init__(self, run: Run):
        super().__init__(run.dir, run.dir.root / "continual.json")
        self.source, self.routers = run, [router_after(run, i) for i in range(len(run.recipe.experts))]

    def needs(self) -> tuple[Path, ...]:
        trained = [part.at for part in (*sequences(self.source), *self.routers)]
        return (self.source.models.base_at, *folders_of(self.source).values(), *trained)

    def inputs(self) -> dict[str, Any]:
        """The versions of everything that is compared, the rows, and how they are scored."""
        evaluate = self.run.recipe.evaluate
        return {
            "base": self.source.task.foundation.fingerprint,
            **self.source.task.foundation.precision,
            "parts": [self.run.identity(at) for at in self.needs()[1:]],
            "settings": {"limit": evaluate.limit, "length": self.run.recipe.train.length},
            "texts": [[row.judged_by for row in some] for some in self.source.task.test_rows.values()],
        }

    def made_from(self, progress: Progress) -> str | None:
        return self.run.made_from(self.at, read_sealed, progress) if self.at.is_file() else None

    def missing(self) -> MoesaicError:
        return RecipeError("the strategies are not compared yet", path=self.at, hint="moesaic continual RECIPE")

    def together(self) -> Any:
        return compare


def compare(parts: Sequence[ContinualPart], progress: Progress, jobs: Jobs) -> None:
    """Score every strategy after every task, and write continual.json."""
    (part,) = parts
    started, run, tasks = time.perf_counter(), part.source, [*part.run.recipe.experts]
    every = range(len(tasks))
    work: dict[str, Work] = {"base": partial(score_base, run.address)}
    work |= {
        f"{strategy} {i}": partial(score_sequence, run.address, strategy, i) for strategy in REPLAYED for i in every
    }
    work |= {
        f"isolated {i}": partial(score_isolated, part.routers[i].source.address, part.routers[i].name) for i in every
    }
    found = jobs.run(work, "comparison")
    alone: list[Isolated] = [found.pop(f"isolated {i}") for i in every]
    for i, one in enumerate(alone):
        found |= {f"isolated {i}": one.routed, f"oracle {i}": one.oracle}
    figures = compared(found, tasks, run.recipe.seed)
    figures |= {"router_accuracy": [one.accuracy for one in alone], "definitions": dict(continual.DEFINITIONS)}
    about = {"name": run.recipe.name, "seed": run.recipe.seed, "replayed": REPLAYED["replay"], "tasks": tasks}
    rows = {name: len(some) for name, some in run.task.test_rows.items()}
    timing = {"seconds": round(time.perf_counter() - started, 2), "machine": machine()}
    write_sealed(part.at, {"stage_key": part.key, **about, "rows": rows, **figures, "timing": timing})


def compared(scores: Mapping[str, Judged], tasks: Sequence[str], seed: int) -> dict[str, Any]:
    """The matrix and the figures of each strategy, with intervals, and the paired differences of OP.

    `scores`: of every strategy after every task, as `replay 2`, and of `base`. A score is minus the nats per token.
    The intervals are paired bootstraps over the test rows of each task.
    """
    others = [UNSEEN] if UNSEEN in next(iter(scores.values())).domains else []
    means = [Means.of(scores, name, seed + i, RESAMPLES, LEVEL) for i, name in enumerate([*tasks, *others])]
    values = {strategy: sequence_of(means, strategy, len(tasks), value_of) for strategy in STRATEGIES}
    draws = {strategy: sequence_of(means, strategy, len(tasks), draws_of) for strategy in STRATEGIES}
    strategies = {name: described(values[name], draws[name]) for name in STRATEGIES}
    gains = {name: gain(values, draws, name) for name in STRATEGIES if name != "isolated"}
    before = {
        "nats": (-values["isolated"].tasks_before).tolist(),
        "others": (-values["isolated"].others_before).tolist(),
    }
    said = sentence(len(tasks), strategies, gains["replay"])
    return {"before": before, "strategies": strategies, "gain_of_isolated_over": gains, "sentence": said}


def described(value: continual.Sequence, draws: continual.Sequence) -> dict[str, Any]:
    """The nats on every task, and on other text, after every task; and the figures with their intervals."""
    found, drawn = value.figures(), draws.figures()
    figures = {name: estimate(float(found[name]), drawn[name]) for name in found}
    figures["OP"] = estimate(-float(found["OP"]), -drawn["OP"])  # in nats per token, as everywhere
    return {"nats": (-value.tasks).tolist(), "others": (-value.others).tolist(), "figures": figures}


def gain(
    values: Mapping[str, continual.Sequence], draws: Mapping[str, continual.Sequence], other: str
) -> dict[str, Any]:
    """The OP of isolated experts with a router above that of another strategy; above 0 they are better."""
    value, drawn = (
        np.asarray(continual.overall(some["isolated"].tasks) - continual.overall(some[other].tasks))
        for some in (values, draws)
    )
    return estimate(float(value), drawn)


def value_of(means: Means, contender: str) -> Float[np.ndarray, ""]:
    return np.asarray(means.value[contender])


def draws_of(means: Means, contender: str) -> Float[np.ndarray, " r"]:
    return means.draws[contender]


def sequence_of(
    means: Sequence[Means], strategy: str, tasks: int, of: Callable[[Means, str], Float[np.ndarray, "*r"]]
) -> continual.Sequence:
    """The scores of a strategy on the tasks, and on the domains behind them: as they are, or in every resample."""
    after = [np.stack([-of(one, f"{strategy} {i}") for one in means], -1) for i in range(tasks)]
    before, table = np.stack([-of(one, "base") for one in means], -1), np.stack(after, -2)
    return continual.Sequence(table[..., :tasks], before[..., :tasks], table[..., tasks:], before[..., tasks:])


def estimate(value: float, draws: Float[np.ndarray, " r"]) -> dict[str, Any]:
    return {"value": value, "interval": [*bounds(draws, LEVEL)]}


def sentence(tasks: int, strategies: Mapping[str, Any], versus: Mapping[str, Any]) -> str:
    """Say which of isolated experts with a router and replay is better, where the interval shows it."""
    isolated, replay = (strategies[name]["figures"]["OP"]["value"] for name in ("isolated", "replay"))
    low, high = versus["interval"]
    said = "is better than" if low > 0 else "is worse than" if high < 0 else "is not clearly different from"
    return (
        f"After {tasks} tasks, an expert for each task with a router {said} one expert with replay: {isolated:.3f} and "
        f"{replay:.3f} nats per token, a gain of {versus['value']:+.3f} (95% interval {low:+.3f} to {high:+.3f})."
    )


# --- in the pool


@torch.inference_mode()
def score_base(address: Address, report: Report) -> Judged:
    """Score the base on the test rows of all tasks, and on text of none."""
    run = report.cached(open_run, address)
    report.begin(1)
    found = score(run.models.base.decoder.score, run.task.test_rows, None, run.recipe.evaluate.batch)
    report.end(run.task.shown(found))
    return found


def score_sequence(address: Address, strategy: str, index: int, report: Report) -> Judged:
    """Score the expert of a strategy after a task."""
    run = report.cached(open_run, address)
    report.begin(1)
    task = [*run.recipe.experts][index]
    found = run.task.score(label_of(strategy, task), plan_of(run, task), folder_after(run, strategy, index))
    report.end(run.task.shown(found))
    return found


@torch.inference_mode()
def score_isolated(address: Address, label: str, report: Report) -> Isolated:
    """Score the experts so far under the decisions of a router, and of the oracle; other tasks have the base alone."""
    run = report.cached(open_run, address)
    rows, names = run.task.test_rows, [*run.recipe.experts]
    every = [row for some in rows.values() for row in some]
    domains = [names.index(name) if name in names else -1 for name, some in rows.items() for _ in some]
    own, router = torch.tensor(domains), load_router(run.dir.router_at(label), run.task.foundation.fingerprint)
    weights = decided(run, run.dir.router_at(label), every, report)
    report.begin(1)
    experts = run.task.read_experts(folders_of(run))
    mixture, batch = assemble(run.recipe.kind, run.models.fresh_base(), experts, router), run.recipe.evaluate.batch
    order = [names.index(name) for name in router.names]
    routed, best = (score(mixture.score, rows, some[:, order], batch) for some in (weights, oracle(own, len(names))))
    chosen = torch.where(weights.sum(-1) > 0, weights.argmax(-1), -1)
    known = own >= 0
    report.end(run.task.shown(routed))
    return Isolated(routed, best, float((chosen == own)[known].double().mean()))
