"""The evaluation as a part of a run: the mixture and all its controls on the same test rows, and what that says.

Nothing of the mixture is chosen here; only the best part is chosen on test rows, which favours the parts. Knows nothing
about how any of them was trained.
"""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from moesaic.artefacts.router import StoredRouter, load_router
from moesaic.errors import MoesaicError, RecipeError, WeightsError
from moesaic.evaluate.routers import router_report
from moesaic.evaluate.statistics import ALL, UNSEEN, Judged
from moesaic.evaluate.verdict import judge
from moesaic.files import read_sealed, write_sealed
from moesaic.runs.jobs import Jobs, Report
from moesaic.runs.machine import machine
from moesaic.runs.part import Part, Work
from moesaic.runs.progress import Progress
from moesaic.stages.experts import CONTROLS, plan_of
from moesaic.stages.matched_prompts import matched_report, matched_rows
from moesaic.stages.routers import features_of, specs, terms_of
from moesaic.tasks import Address, Run, open_run
from moesaic.tasks.task import Beside, Plan, Scorer

Decisions = dict[str, tuple[Tensor, Tensor]]
"""Router -> its weights and logits of rows, in the order of the recipe's experts."""


class EvaluationPart(Part):
    """The evaluation of a run."""

    name = stage = "evaluation"

    def __init__(self, run: Run):
        super().__init__(run.dir)
        self.source = run

    @property
    def at(self) -> Path:
        return self.run.evaluation_at

    def needs(self) -> tuple[Path, ...]:
        parts = [*self.run.recipe.trained, *trained_controls(self.source)]
        routers = [self.run.router_at(name) for name in specs(self.source)]
        return (*(self.run.part_at(name) for name in parts), *routers, self.run.mixture_at)

    def require_needs(self, needed: Sequence[Part], told: Progress) -> None:
        """Refuse to judge parts that the recipe, as it is now, would make differently."""
        for part in needed:
            if part.at == self.run.mixture_at:
                part.require()
            elif not part.finished(told):
                what = f"'{part.name}' is missing, or was made from another recipe"
                raise RecipeError(what, path=part.at, hint=part.missing().hint)

    def inputs(self) -> dict[str, Any]:
        """The files of mixture and controls, the test rows, and how they are judged."""
        run = self.source
        rivals = [self.run.router_at(name) for name in specs(run) if name != "router"]
        trained = [self.run.part_at(name) for name in trained_controls(run)]
        return {
            "parts": [self.run.identity(at) for at in (self.run.mixture_at, *trained, *rivals)],
            "settings": self.run.recipe.evaluate.model_dump(mode="json", exclude={*CONTROLS}),
            "texts": [[row.judged_by for row in some] for some in run.task.test_rows.values()],
        }

    def finished(self, told: Progress) -> bool:
        return self.standing(told).get("stage_key") == self.key

    def standing(self, told: Progress) -> dict[str, Any]:
        """The evaluation that exists; {} where there is none, or where it is damaged, which is reported."""
        try:
            return read_sealed(self.at) if self.at.is_file() else {}
        except WeightsError as error:
            if self.run.strict:
                raise
            told.warn(f"damaged, to be made anew: {error}")
            return {}

    def missing(self) -> MoesaicError:
        return RecipeError("there is no evaluation yet", path=self.at, hint="moesaic evaluate RECIPE")

    def together(self) -> Any:
        return evaluate


def evaluate(parts: Sequence[EvaluationPart], told: Progress, jobs: Jobs) -> None:
    """Score everything, judge it, and write evaluation.json."""
    (part,) = parts
    started, run, recipe = time.perf_counter(), part.source, part.run.recipe
    decisions, alike, scores, routed = scored(run, jobs)
    keyword = next(name for name in decisions if specs(run)[name].kind == "keyword")
    scores |= {"router": routed["router"], "keyword": routed[keyword]}
    trained = {name: (plan_of(run, name), run.dir.part_at(name)) for name in trained_controls(run)}
    beside = run.task.beside(scores, decisions["router"][0], trained)
    evaluation = {
        "stage_key": part.key,
        "mixture": run.dir.identity(run.dir.mixture_at),
        "name": recipe.name,
        "seed": recipe.seed,
        "domains": [domain for domain in run.task.test_rows if domain != UNSEEN],
        **judged(run, scores, beside),
        "router": told_of_routers(run, decisions, routed, alike),
        **beside.facts,
        "truncated": {d: sum(row.truncated for row in some) for d, some in run.task.test_rows.items()},
        "timing": {"seconds": round(time.perf_counter() - started, 2), "machine": machine(), **beside.timing},
    }
    weigh_accuracy(run, evaluation)
    write_sealed(part.at, without_unwanted(evaluation, recipe.evaluate.metrics))


def scored(run: Run, jobs: Jobs) -> tuple[Decisions, dict[str, dict[str, Any]], dict[str, Judged], dict[str, Judged]]:
    """All routers' decisions, their reports on prompts alike in length, the scores of contenders, those of routers."""
    work: dict[str, Work] = {"decide": partial(decide, run.address)}
    work |= {"matched": partial(decide_alike, run.address)} if run.recipe.evaluate.matched else {}
    work |= {name: partial(score_contender, run.address, name) for name in contenders(run)}
    found = jobs.run(work)
    decisions, alike = found.pop("decide"), found.pop("matched", {})
    second: dict[str, Work] = {
        name: partial(score_weights, run.address, None if decides_on(run, name) else weights)
        for name, (weights, _) in decisions.items()
        if name == "router" or not picks_one(weights)
    }
    routed, nobody = jobs.run(second), run.task.nobody()
    names = tuple(run.recipe.experts)
    routed |= {
        name: looked_up(found, names, weights, nobody) for name, (weights, _) in decisions.items() if name not in routed
    }
    return decisions, alike, found, routed


def judged(run: Run, scores: dict[str, Judged], beside: Beside) -> dict[str, Any]:
    """The verdict on all scores, with the controls that the recipe asks for."""
    verdict, wanted = judge(scores, costs=beside.costs, seed=run.recipe.seed), run.recipe.evaluate.controls
    for name, figures in beside.controls.items():
        verdict["controls"][name] |= figures
    if wanted == "all":
        missing = left_out(run).items()
        verdict["verdict"]["reasons"] += [f"{name} is not computed: {why}." for name, why in missing]
    else:
        shown = {"router", *wanted, *(f"expert:{name}" for name in run.recipe.experts)}
        verdict["controls"] = {name: control for name, control in verdict["controls"].items() if name in shown}
    return verdict


def told_of_routers(
    run: Run, decisions: Decisions, routed: Mapping[str, Judged], alike: Mapping[str, dict[str, Any]]
) -> dict[str, Any]:
    """How the mixture's router decided, and in brief how all did."""
    tried = [report_on(run, name, decisions, routed, brief=True) for name in decisions]
    own = report_on(run, "router", decisions, routed) | {"tried": tried}
    if alike:
        own["matched"] = alike["router"]
        for one, name in zip(tried, decisions, strict=True):
            one["matched"] = alike[name]
    return own


def weigh_accuracy(run: Run, evaluation: dict[str, Any]) -> None:
    """Where rows without an expert have no answer, say what the router's accuracy makes of the experts' own score."""
    if run.task.answers and "oracle" in evaluation["controls"]:
        expected = evaluation["router"]["accuracy"] * evaluation["controls"]["oracle"]["score"][ALL]
        evaluation["router"]["accuracy_x_score"] = expected


def without_unwanted(evaluation: dict[str, Any], wanted: Sequence[str]) -> dict[str, Any]:
    """The evaluation without the metrics that the recipe does not ask for."""
    routers = [evaluation["router"], *evaluation["router"]["tried"]]
    shown = {
        "perplexity": ([*evaluation["controls"].values()], ("perplexity",)),
        "accuracy": (routers, ("accuracy", "macro_f1", "by_length", "matched")),
    }
    for metric, (places, fields) in shown.items():
        for place in places if metric not in wanted else ():
            for field in fields:
                place.pop(field, None)
    return evaluation


# --- contenders


def contenders(run: Run) -> list[str]:
    """The contenders that are scored without a router: those asked for, and those that others are derived from."""
    recipe = run.recipe
    every = ["base", *(f"expert:{name}" for name in recipe.experts), "uniform", "average"]
    every += CONTROLS if recipe.trained else []  # else nothing here that they could be a control of
    wanted, missing = recipe.evaluate.controls, left_out(run)
    asked = [name for name in every if wanted == "all" or name == "base" or ":" in name or name in wanted]
    return [name for name in asked if name not in missing]


def trained_controls(run: Run) -> list[str]:
    """The controls that are scored and were trained like an expert."""
    return [name for name in contenders(run) if name in CONTROLS]


def left_out(run: Run) -> dict[str, str]:
    """The controls that cannot be computed of this recipe's experts, and why."""
    kind, recipe = run.recipe.kind, run.recipe
    elsewhere = [run.models.located(expert.path).folder for expert in recipe.experts.values() if expert.path]
    found = {"joint_wide": kind.no_wider, "average": kind.not_averaged(run.models.base_at, elsewhere)}
    return {name: why for name, why in found.items() if why}


def control_plan(run: Run, name: str) -> tuple[Plan, Path] | tuple[None, None]:
    """The plan and the folder of a control that was trained; of other contenders none."""
    return (plan_of(run, name), run.dir.part_at(name)) if name in CONTROLS else (None, None)


# --- in the pool


def open_scorer(address: Address, version: str) -> Scorer:
    """The scorer of the mixture at an address, as long as the mixture is the same version."""
    return open_run(address).task.scorer()


def scorer_at(address: Address, report: Report) -> tuple[Run, Scorer]:
    run = report.kept(open_run, address)
    return run, report.kept(open_scorer, address, str(run.dir.mixture_at.resolve()))


def score_contender(address: Address, name: str, report: Report) -> Judged:
    """Score one contender that needs no router."""
    run, scorer = scorer_at(address, report)
    report.begin(1)
    scores = scorer.contender(name, *control_plan(run, name))
    report.end(scorer.shown(scores))
    return scores


def score_weights(address: Address, weights: Float[Tensor, "n e"] | None, report: Report) -> Judged:
    """Score the mixture under given decisions; None: it decides before every token."""
    _, scorer = scorer_at(address, report)
    report.begin(1)
    scores = scorer.weighted(weights)
    report.end(scorer.shown(scores))
    return scores


def decides_on(run: Run, name: str) -> bool:
    """Whether a router decides before every token: then its decisions on prompts are not all that it decides."""
    return name == "router" and run.recipe.mixture.level == "token"


@torch.inference_mode()
def decide(address: Address, report: Report) -> Decisions:
    """The decisions of all routers on the test rows."""
    run = report.kept(open_run, address)
    return decisions_on(run, [row for some in run.task.test_rows.values() for row in some], report)


@torch.inference_mode()
def decide_alike(address: Address, report: Report) -> dict[str, dict[str, Any]]:
    """How every router does on prompts that are alike in length."""
    run = report.kept(open_run, address)
    alike = matched_rows(run.task)
    decisions = decisions_on(run, [row for some in alike.values() for row in some], report)
    return {name: matched_report(run.recipe, alike, weights) for name, (weights, _) in decisions.items()}


def decisions_on(run: Run, rows: Sequence[Any], report: Report) -> Decisions:
    """The decisions of all routers, from one reading of their features."""
    wanted = specs(run)
    routers = {name: stored_router(run, name) for name in wanted}
    features = list(dict.fromkeys(spec.feature for spec in wanted.values()))
    read = dict(zip(features, features_of(run, rows, features, report), strict=True))
    decisions = Decisions()
    for name, router in routers.items():
        routing = router.selection(router.router(read[wanted[name].feature]))
        order = [router.names.index(expert) for expert in run.recipe.experts]
        decisions[name] = routing.weights[:, order].float(), routing.logits[:, order]
    report.end(f"{len(routers)} routers")
    return decisions


def stored_router(run: Run, name: str) -> StoredRouter:
    return load_router(run.dir.router_at(name), run.task.foundation.fingerprint)


# --- what the scores say


def picks_one(weights: Float[Tensor, "n e"]) -> bool:
    """Whether every row takes one expert whole, or none: then its nats are known already."""
    return bool(((weights == 0) | (weights == 1)).all() and (weights.sum(-1) <= 1).all())


def looked_up(
    scores: Mapping[str, Judged], names: tuple[str, ...], weights: Float[Tensor, "n e"], nobody: Judged | None = None
) -> Judged:
    """What decisions that take one expert a row lead to, from the experts' own; without one `nobody`, else the base."""
    base = scores["base"]
    chosen = torch.where(weights.sum(-1) > 0, weights.argmax(-1), len(names)).numpy()
    return base.picked([*(scores[f"expert:{name}"] for name in names), nobody or base], chosen)


def report_on(
    run: Run, name: str, decisions: Decisions, routed: Mapping[str, Judged], brief: bool = False
) -> dict[str, Any]:
    """How a router decided on the test rows of domains that have an expert, and what that cost."""
    names, spec, rows = tuple(run.recipe.experts), specs(run)[name], run.task.test_rows
    weights, logits = decisions[name]
    domains = [domain for domain, some in rows.items() for _ in some]
    labelled = [i for i, domain in enumerate(domains) if domain in names]
    silent = torch.isneginf(logits).all(-1, keepdim=True)
    probabilities = logits.masked_fill(silent, 0.0).double().softmax(-1)[labelled].numpy()
    chosen = torch.where(weights.sum(-1) > 0, weights.argmax(-1), -1)[labelled].tolist()
    lengths = [row.prompt for some in rows.values() for row in some]
    report = router_report(
        [names.index(domains[i]) for i in labelled], chosen, probabilities, list(names), [lengths[i] for i in labelled]
    )
    validation = stored_router(run, name).manifest["metrics"]
    own = {
        "kind": spec.kind,
        "feature": str(spec.feature),
        "selection": spec.selection,
        "level": "token" if decides_on(run, name) else "sequence",
        "examples": str(spec.examples or "all"),
        "loss": terms_of(spec),
        routed[name].unit.key: routed[name].unit.figure(routed[name].mean()),
        "validation_macro_f1": validation["validation_macro_f1"],
    }
    told = ("accuracy", "macro_f1", "utilisation", "utilisation_entropy", "utilisation_evenness")
    return own | ({key: report[key] for key in told} if brief else report)
