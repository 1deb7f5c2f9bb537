"""The evaluation as a part of a run: the mixture and all its controls on the same test rows, and the verdict.

Nothing of the mixture is chosen here; only the best part is chosen on test rows, which favours the parts. Knows nothing
about how any of them was trained.
"""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from moesaic.data.cuts import cut_of, told, truncated
from moesaic.errors import MoesaicError, RecipeError
from moesaic.evaluate.outside import broken_limits
from moesaic.evaluate.routers import router_report
from moesaic.evaluate.ruling import Cost
from moesaic.evaluate.statistics import ALL, UNSEEN, Judged
from moesaic.evaluate.units import read_evaluation
from moesaic.evaluate.verdict import judge
from moesaic.files import MANIFEST, digest, read_manifest, write_sealed
from moesaic.files.manifest import require_types
from moesaic.kinds.gates import Weights
from moesaic.runs.directory import RunDir
from moesaic.runs.jobs import Jobs, Report
from moesaic.runs.machine import machine
from moesaic.runs.part import Part, Work
from moesaic.runs.progress import Progress
from moesaic.sections.routers import GATES
from moesaic.stages.decisions import Decisions, chosen, jobs_of, outside_of, stored_router
from moesaic.stages.experts import CONTROLS, plan_of
from moesaic.stages.gates import mixture_with
from moesaic.stages.routers import specs, terms_of
from moesaic.tasks import Address, Run, open_run
from moesaic.tasks.task import Findings


class EvaluationPart(Part):
    """The evaluation of a run."""

    run: RunDir
    name = stage = "evaluation"
    is_folder = False

    def __init__(self, run: Run):
        super().__init__(run.dir, run.dir.evaluation_at)
        self.source = run

    def needs(self) -> tuple[Path, ...]:
        parts = [*self.run.recipe.trained, *trained_controls(self.source)]
        routers = [self.run.router_at(name) for name in specs(self.source)]
        return (*(self.run.part_at(name) for name in parts), *routers, self.run.mixture_at)

    def require_needs(self, needed: Sequence[Part], progress: Progress) -> None:
        """Refuse to judge parts that the recipe, as it is now, would make differently; any mixture can be judged."""
        for part in needed:
            if part.at != self.run.mixture_at and not part.finished(progress):
                what = f"'{part.name}' is missing, or was made from another recipe"
                raise RecipeError(what, path=part.at, hint=part.missing().hint)
        super().require_needs(needed, progress)

    def inputs(self) -> dict[str, Any]:
        """The versions of mixture and controls, the rows with all that they say, and the settings of the evaluation."""
        run = self.source
        rivals = [self.run.router_at(name) for name in specs(run) if name != "router"]
        trained = [self.run.part_at(name) for name in trained_controls(run)]
        return {
            "parts": [self.run.identity(at) for at in (self.run.mixture_at, *trained, *rivals)],
            "settings": self.run.recipe.evaluate.model_dump(mode="json", exclude={*CONTROLS}),
            "texts": [[row.judged_by for row in some] for some in run.task.test_rows.values()],
            "rows": run.materials.judged_by,
            **run.task.compute.key,
        }

    def made_from(self, progress: Progress) -> str | None:
        """The key of the sound evaluation that exists; None without one. A damaged evaluation is reported."""
        return self.run.made_from(self.at, read_evaluation, progress) if self.at.is_file() else None

    def missing(self) -> MoesaicError:
        return RecipeError("there is no evaluation yet", path=self.at, hint="moesaic evaluate RECIPE")

    def together(self) -> Any:
        return evaluate


def evaluate(parts: Sequence[EvaluationPart], progress: Progress, jobs: Jobs) -> None:
    """Score everything, judge it, and write evaluation.json."""
    (part,) = parts
    started, run, recipe = time.perf_counter(), part.source, part.run.recipe
    decisions, beside, scores, routed = scored(run, jobs)
    keyword = next(name for name in decisions if specs(run)[name].kind == "keyword")
    scores |= {"router": routed["router"], "keyword": routed[keyword]}
    trained = {name: (plan_of(run, name), run.dir.part_at(name)) for name in trained_controls(run)}
    progress.note("evaluation: scored; samples, costs and speed follow")
    findings = run.task.findings(scores, decisions["router"][0], trained)
    evaluation = {
        "stage_key": part.key,
        "mixture": run.dir.identity(run.dir.mixture_at),
        "name": recipe.name,
        "seed": recipe.seed,
        "domains": [domain for domain in run.task.test_rows if domain != UNSEEN],
        "rows_sha256": {name: digest([row.judged_by for row in rows]) for name, rows in run.task.test_rows.items()},
        **judged(run, scores, findings),
        "router": router_facts(run, decisions, routed, beside),
        **findings.facts,
        "definitions": run.task.definitions,
        "truncated": {domain: truncated(rows) for domain, rows in run.task.test_rows.items()},
        **cuts_of(run),
        "timing": {"seconds": round(time.perf_counter() - started, 2), "machine": machine(), **findings.timing},
    }
    for domain, rows in run.task.test_rows.items():
        if cuts := told("test", rows, recipe.train.length):
            progress.note(f"{domain}: {cuts}")
    weigh_accuracy(run, evaluation)
    evaluation["verdict"]["reasons"] += broken_limits(evaluation["router"])
    write_sealed(part.at, without_unwanted(evaluation, recipe.evaluate.metrics))


def cuts_of(run: Run) -> dict[str, Any]:
    """The share of tokens that was cut, by domain, of training rows and test rows; nothing where no row was cut."""
    found = {domain: {"test": cut_of(rows).get("cut", 0.0)} for domain, rows in run.task.test_rows.items()}
    for name in run.recipe.trained:
        found[name]["train"] = read_manifest(run.dir.part_at(name), verify=False)["rows"].get("cut", 0.0)
    return {"cut": found} if any(any(shares.values()) for shares in found.values()) else {}


def scored(run: Run, jobs: Jobs) -> tuple[Decisions, dict[str, dict[str, Any]], dict[str, Judged], dict[str, Judged]]:
    """All routers' decisions, what else they decide on by job and router, the scores of contenders, of routers."""
    deciding: dict[str, Work] = jobs_of(run)
    work = deciding | {name: partial(score_contender, run.address, name) for name in contenders(run)}
    found = jobs.run(work, "evaluation")
    decisions, *others = (found.pop(name) for name in deciding)
    beside = dict(zip([*deciding][1:], others, strict=True))
    second: dict[str, Work] = {
        name: partial(score_router, run.address, name, None if decides_on(run, name) else weights)
        for name, (weights, _) in decisions.items()
        if name == "router" or decides_on(run, name) or not picks_one(weights)
    }
    routed, unanswered, names = (
        jobs.run(second, "evaluation of the mixture"),
        run.task.unanswered(),
        tuple(run.recipe.experts),
    )
    for name, (weights, _) in decisions.items():
        if name not in routed:
            routed[name] = looked_up(found, names, weights, unanswered)
    return decisions, beside, found, routed


def judged(run: Run, scores: dict[str, Judged], findings: Findings) -> dict[str, Any]:
    """The verdict on all scores, with the controls that the recipe asks for."""
    speeds, wanted = findings.timing.get("tokens_per_second", {}), run.recipe.evaluate.controls
    costs = {name: Cost(**cost, tokens_per_second=speeds.get(name)) for name, cost in findings.costs.items()}
    verdict = judge(scores, costs=costs, seed=run.recipe.seed)
    for name, figures in findings.controls.items():
        verdict["controls"][name] |= figures
    if wanted == "all":
        missing = left_out(run).items()
        verdict["verdict"]["reasons"] += [f"{name} is not computed: {why}." for name, why in missing]
    else:
        shown = {"router", *wanted, *(f"expert:{name}" for name in run.recipe.experts)}
        verdict["controls"] = {name: control for name, control in verdict["controls"].items() if name in shown}
    return verdict


def router_facts(
    run: Run, decisions: Decisions, routed: Mapping[str, Judged], beside: Mapping[str, dict[str, Any]]
) -> dict[str, Any]:
    """The report on the mixture's router, with short reports on all routers."""
    tried = {name: report_on(run, name, decisions, routed, brief=True) for name in decisions}
    own = report_on(run, "router", decisions, routed) | {"tried": [*tried.values()]}
    for name, report in beside.get("matched", {}).items():
        tried[name]["matched"] = report
    for name, forms in beside.get("forms", {}).items():
        worst = min(forms, key=lambda form: forms[form]["accuracy"])
        tried[name]["worst_form"] = {"form": worst, "accuracy": forms[worst]["accuracy"]}
    for name, kinds in beside.get("neutral", {}).items():
        report = outside_of(run, decisions, name, kinds)
        tried[name]["outside"] = {key: report[key] for key in ("rows", "abstained", "auroc")}
        own |= {"outside": report} if name == "router" else {}
    return own | {key: found["router"] for key, found in beside.items() if key in ("matched", "forms")}


def weigh_accuracy(run: Run, evaluation: dict[str, Any]) -> None:
    """Where rows without an expert have no answer, add the product of the router's accuracy and the experts' score."""
    if run.task.answers and "oracle" in evaluation["controls"]:
        expected = evaluation["router"]["accuracy"] * evaluation["controls"]["oracle"]["score"][ALL]
        evaluation["router"]["accuracy_x_score"] = expected


def without_unwanted(evaluation: dict[str, Any], wanted: Sequence[str]) -> dict[str, Any]:
    """The evaluation without the metrics that the recipe does not ask for."""
    routers = [evaluation["router"], *evaluation["router"]["tried"]]
    shown = {
        "perplexity": ([*evaluation["controls"].values()], ("perplexity",)),
        "accuracy": (routers, ("accuracy", "macro_f1", "by_length", "matched", "forms", "worst_form")),
    }
    for metric, (places, fields) in shown.items():
        for place in places if metric not in wanted else ():
            for field in fields:
                place.pop(field, None)
    return evaluation


# --- contenders


def contenders(run: Run) -> list[str]:
    """The contenders that are scored without a router: the requested ones, and those that others are derived from."""
    recipe = run.recipe
    every = ["base", *(f"expert:{name}" for name in recipe.experts), "uniform", "average"]
    every += CONTROLS if recipe.trained else []  # without experts that are trained here they control nothing
    wanted, missing = recipe.evaluate.controls, left_out(run)
    asked = [name for name in every if wanted == "all" or name == "base" or ":" in name or name in wanted]
    return [name for name in asked if name not in missing]


def trained_controls(run: Run) -> list[str]:
    """The scored controls that were trained like an expert."""
    return [name for name in contenders(run) if name in CONTROLS]


def left_out(run: Run) -> dict[str, str]:
    """The controls that cannot be computed from this recipe's experts, with the reasons."""
    kind, recipe = run.recipe.kind, run.recipe
    elsewhere = [run.models.located(expert.path).folder for expert in recipe.experts.values() if expert.path]
    found = {"joint_wide": kind.no_wider, "average": kind.not_averaged(run.models.base_at, elsewhere)}
    return {name: why for name, why in found.items() if why}


# --- in the pool


def score_contender(address: Address, name: str, report: Report) -> Judged:
    """Score one contender that needs no router."""
    run = report.cached(open_run, address)
    report.begin(1)
    trained = (plan_of(run, name), run.dir.part_at(name)) if name in CONTROLS else (None, None)
    scores = run.task.score(name, *trained)
    report.end(run.task.shown(scores))
    return scores


def score_router(address: Address, name: str, weights: Weights | None, report: Report) -> Judged:
    """Score the mixture under the decisions of a router; None: it decides before every token."""
    run = report.cached(open_run, address)
    report.begin(1)
    if name != "router" and weights is None:
        scores = run.task.score_model(mixture_with(run, name))
    else:
        scores = run.task.score_weights(weights)
    report.end(run.task.shown(scores))
    return scores


def decides_on(run: Run, name: str) -> bool:
    """Tell whether a router decides before every token, and not only on prompts."""
    return specs(run)[name].kind == GATES or (name == "router" and run.recipe.mixture.level == "token")


# --- conclusions from the scores


def picks_one(weights: Weights) -> bool:
    """Tell whether every row has one expert with weight 1, or none, so that its scores are known already."""
    return bool(((weights == 0) | (weights == 1)).all() and (weights.sum(-1) <= 1).all())


def looked_up(
    scores: Mapping[str, Judged], names: tuple[str, ...], weights: Weights, unanswered: Judged | None = None
) -> Judged:
    """The scores of decisions for one expert a row, from the experts' own; for none `unanswered`, else the base's."""
    base = scores["base"]
    who = torch.where(weights.sum(-1) > 0, weights.argmax(-1), len(names)).numpy()
    return base.picked([*(scores[f"expert:{name}"] for name in names), unanswered or base], who)


def report_on(
    run: Run, name: str, decisions: Decisions, routed: Mapping[str, Judged], brief: bool = False
) -> dict[str, Any]:
    """A router's decisions on the test rows of domains that have an expert, and the scores that they lead to."""
    names, spec, rows = tuple(run.recipe.experts), specs(run)[name], run.task.test_rows
    weights, shares = decisions[name]
    domains = [domain for domain, some in rows.items() for _ in some]
    labelled = [i for i, domain in enumerate(domains) if domain in names]
    probabilities = shares[labelled, :-1].double().numpy()
    lengths = [row.prompt for some in rows.values() for row in some]
    report = router_report(
        [names.index(domains[i]) for i in labelled],
        chosen(weights)[labelled].tolist(),
        probabilities,
        list(names),
        [lengths[i] for i in labelled],
    )
    validation = stored_router(run, name).manifest
    require_types(run.dir.router_at(name) / MANIFEST, validation, {"metrics": {"validation_macro_f1": float}})
    own = {
        "kind": spec.title,
        "feature": spec.gates.start if spec.gates else str(spec.feature),
        "selection": spec.selection,
        "level": "token" if decides_on(run, name) else "sequence",
        "examples": str(spec.examples or "all"),
        "loss": terms_of(spec),
        routed[name].unit.key: routed[name].unit.figure(routed[name].mean()),
        "validation_macro_f1": validation["metrics"]["validation_macro_f1"],
    }
    shown = ("accuracy", "macro_f1", "utilisation", "utilisation_entropy", "utilisation_evenness")
    return own | ({key: report[key] for key in shown} if brief else report)
