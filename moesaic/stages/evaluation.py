"""Stage 5: the mixture and all its controls on the same test rows, and what that says.

Nothing of the mixture is chosen here; only the best part is chosen on test rows, which favours the parts. Knows
nothing about how any of them was trained.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from moesaic.artefacts.router import StoredRouter, load_router
from moesaic.compose.classifier import load_classifier
from moesaic.compose.mixture import Mixture, StoredMixture, load_mixture
from moesaic.data.answers import LabelledTokens
from moesaic.data.batches import Tokens
from moesaic.errors import RecipeError, WeightsError
from moesaic.evaluate.grades import Grades
from moesaic.evaluate.routers import router_report
from moesaic.evaluate.score import Logits, logits_of, score
from moesaic.evaluate.statistics import ALL, UNSEEN, Judged, mean_nats
from moesaic.evaluate.tokens import pieces, token_owners
from moesaic.evaluate.verdict import Cost, judge
from moesaic.files import MANIFEST, read_sealed, write_sealed
from moesaic.generate.engine import Engine
from moesaic.generate.sample import Sampling
from moesaic.generate.speed import tokens_per_second
from moesaic.kinds.making import Lone, lone
from moesaic.kinds.mixed import averaged, costs_of, counts_of, left_out, speed_of
from moesaic.model.whole import ModelMixture
from moesaic.routing import controls, require
from moesaic.runs.jobs import Jobs, Report
from moesaic.runs.progress import Progress
from moesaic.runs.workshop import Address, Workshop, at_address, kept
from moesaic.stages import grading
from moesaic.stages.experts import CONTROLS, plan_of
from moesaic.stages.experts import key_of as part_key
from moesaic.stages.matching import matched_report, matched_rows
from moesaic.stages.routers import done as routers_done
from moesaic.stages.routers import features_of, specs, terms_of
from moesaic.stages.writing import written

SAMPLE_TOKENS = 48

Decisions = dict[str, tuple[Tensor, Tensor]]
"""Router -> its weights and logits of rows, in the order of the recipe's experts."""


def evaluate(workshop: Workshop, progress: Progress, jobs: Jobs) -> dict[str, Any]:
    """Score everything, judge it, and write evaluation.json; unless it stands, made from the same parts and texts."""
    started, recipe, at = time.perf_counter(), workshop.recipe, workshop.root / "evaluation.json"
    require_current(workshop, progress)
    key = key_of(workshop)
    if (standing := finished(at, workshop.strict, progress)).get("stage_key") == key:
        progress.note("evaluation: finished, skipped")
        return standing
    names, wanted = tuple(recipe.experts), recipe.evaluate.controls
    work: dict[str, Callable[[Report], Any]] = {"decide": partial(decide, workshop.address)}
    work |= {"matched": partial(decide_alike, workshop.address)} if recipe.evaluate.matched else {}
    work |= {name: partial(score_contender, workshop.address, name) for name in contenders(workshop)}
    found = jobs.run(work)
    decisions, alike = found.pop("decide"), found.pop("matched", {})
    scores: dict[str, Judged] = found
    second: dict[str, Callable[[Report], Any]] = {
        name: partial(score_weights, workshop.address, None if decides_on(workshop, name) else weights)
        for name, (weights, _) in decisions.items()
        if name == "router" or not picks_one(weights)
    }
    routed = jobs.run(second)
    nobody = grading.nobody(workshop) if recipe.labelled else None
    routed |= {
        name: looked_up(scores, names, weights, nobody)
        for name, (weights, _) in decisions.items()
        if name not in routed
    }
    keyword = next(name for name in decisions if specs(workshop)[name].kind == "keyword")
    scores |= {"router": routed["router"], "keyword": routed[keyword]}

    told = (told_of_labels if recipe.labelled else told_of_texts)(workshop, scores, decisions["router"][0])
    verdict = judge(scores, costs=told.costs, seed=recipe.seed)
    for name, figures in told.controls.items():
        verdict["controls"][name] |= figures
    if wanted == "all":
        missing = left_out(workshop).items()
        verdict["verdict"]["reasons"] += [f"{name} is not computed: {why}." for name, why in missing]
    if wanted != "all":
        kept = {"router", *wanted, *(f"expert:{name}" for name in names)}
        verdict["controls"] = {name: control for name, control in verdict["controls"].items() if name in kept}
    rows = rows_of(workshop)
    evaluation = {
        "stage_key": key,
        "mixture": workshop.identity(workshop.mixture_at),
        "name": recipe.name,
        "seed": recipe.seed,
        "domains": [domain for domain in rows if domain != UNSEEN],
        **verdict,
        "router": report_on(workshop, "router", decisions, routed, rows)
        | {"tried": [report_on(workshop, name, decisions, routed, rows, brief=True) for name in decisions]},
        **told.facts,
        "truncated": {domain: sum(row.truncated for row in some) for domain, some in rows.items()},
        "timing": {"seconds": round(time.perf_counter() - started, 2), **told.timing},
    }
    if alike:
        evaluation["router"]["matched"] = alike["router"]
        for tried, name in zip(evaluation["router"]["tried"], decisions, strict=True):
            tried["matched"] = alike[name]
    if recipe.labelled and "oracle" in verdict["controls"]:
        expected = evaluation["router"]["accuracy"] * verdict["controls"]["oracle"]["score"][ALL]
        evaluation["router"]["accuracy_x_score"] = expected
    judged = ("accuracy", "macro_f1", "by_length", "matched")
    for metric, (places, fields) in {
        "perplexity": ([*evaluation["controls"].values()], ("perplexity",)),
        "accuracy": ([evaluation["router"], *evaluation["router"]["tried"]], judged),
    }.items():
        for place in places if metric not in recipe.evaluate.metrics else ():
            for field in fields:
                place.pop(field, None)
    write_sealed(at, evaluation)
    return evaluation


@dataclass(frozen=True)
class Told:
    """What is told beside the verdict: costs that it rests on, more of each control, facts, how long things take."""

    costs: dict[str, Cost]
    controls: dict[str, dict[str, Any]]
    facts: dict[str, Any]
    timing: dict[str, Any]


def told_of_texts(workshop: Workshop, scores: dict[str, Judged], weights: Float[Tensor, "n e"]) -> Told:
    """Of a mixture that writes: what it writes, and how fast. `weights`: the router's decisions."""
    mixture, trained = load_mixture(workshop.mixture_at), trained_controls(workshop)
    counts = counts_of(workshop, mixture, weights)
    facts = {"parameters": counts, "samples": samples(workshop, mixture, workshop.test_rows())}
    facts |= written(workshop, Engine(mixture.model, mixture.tokenizer))
    speeds = {"base": tokens_per_second(workshop.base.decoder, None), "router": speed_of(mixture)}
    speeds |= {name: tokens_per_second(one.decoder, one.gates(1)) for name, one in trained.items()}
    told = {name: round(rate, 1) for name, rate in speeds.items()}
    spent = costs_of(workshop, mixture, counts, {name: one.stored for name, one in trained.items()})
    return Told(spent, {}, facts, {"tokens_per_second": told})


def trained_controls(workshop: Workshop) -> dict[str, Lone]:
    """The controls that are scored and were trained like an expert, read back."""
    names = [name for name in contenders(workshop) if name in CONTROLS]
    return {name: lone(workshop, plan_of(workshop, name), workshop.part_at(name)) for name in names}


def told_of_labels(workshop: Workshop, scores: dict[str, Judged], weights: Float[Tensor, "n e"]) -> Told:
    """Of a mixture that classifies: what it answers, and how it does on all rows alike."""
    mixture = load_classifier(workshop.mixture_at)
    counts = grading.counted(workshop, mixture, weights)
    grades = {name: one for name, one in scores.items() if isinstance(one, Grades)}
    pooled = {name: {"accuracy": one} for name, one in grading.pooled(grades, workshop.recipe.seed).items()}
    facts = {"parameters": counts, "samples": grading.samples(workshop, mixture)}
    return Told(grading.costs(workshop, mixture, counts, set(scores)), pooled, facts, {})


def rows_of(workshop: Workshop) -> Mapping[str, Sequence[Tokens | LabelledTokens]]:
    """The rows that everything is judged on, by domain."""
    return workshop.labelled_test_rows() if workshop.recipe.labelled else workshop.test_rows()


def finished(at: Path, strict: bool, progress: Progress) -> dict[str, Any]:
    """The evaluation that stands; nothing where there is none, or where it is damaged, which is said."""
    try:
        return read_sealed(at) if at.is_file() else {}
    except WeightsError as error:
        if strict:
            raise
        progress.warn(f"damaged, to be made anew: {error}")
        return {}


def contenders(workshop: Workshop) -> list[str]:
    """Who is scored without a router: what the recipe asks for, and what everything else is derived from."""
    recipe = workshop.recipe
    every = ["base", *(f"expert:{name}" for name in recipe.experts), "uniform", "average"]
    every += CONTROLS if workshop.trained_experts() else []  # else nothing here that they could be a control of
    wanted, missing = recipe.evaluate.controls, left_out(workshop)
    asked = [name for name in every if wanted == "all" or name == "base" or ":" in name or name in wanted]
    return [name for name in asked if name not in missing]


def require_current(workshop: Workshop, progress: Progress) -> None:
    """Refuse to judge parts that the recipe, as it is now, would make differently."""
    for name in (*workshop.trained_experts(), *(n for n in contenders(workshop) if n in CONTROLS)):
        if not workshop.finished(workshop.part_at(name), part_key(workshop, name), progress):
            what = f"'{name}' is missing, or was made from another recipe"
            raise RecipeError(what, path=workshop.part_at(name), hint=f"moesaic train-expert RECIPE --expert {name}")
    for name, spec in specs(workshop).items():
        if not routers_done(workshop, name, spec, progress):
            raise RecipeError(f"{name} is missing, or was made from another recipe", hint="moesaic train-router RECIPE")
    if not (workshop.mixture_at / MANIFEST).is_file():
        raise RecipeError("there is no mixture yet", path=workshop.mixture_at, hint="moesaic compose RECIPE")


def key_of(workshop: Workshop) -> str:
    """What the evaluation depends on: the files of mixture and controls, the test rows, how they are judged."""
    recipe = workshop.recipe
    rivals = [workshop.rival_at(name) for name in specs(workshop) if name != "router"]
    trained = [workshop.part_at(name) for name in contenders(workshop) if name in CONTROLS]
    return workshop.key(
        "evaluation",
        parts=[workshop.identity(at) for at in (workshop.mixture_at, *trained, *rivals)],
        settings=recipe.evaluate.model_dump(mode="json", exclude={*CONTROLS}),
        texts=[[judged_by(row) for row in some] for some in rows_of(workshop).values()],
    )


def judged_by(row: Tokens | LabelledTokens) -> list[Any]:
    """What a row is judged by: its tokens, from where they are scored, and its label."""
    return [row.ids, row.prompt, *([row.label] if isinstance(row, LabelledTokens) else [])]


# in the pool


@kept
def mixture_of(address: Address, version: str) -> StoredMixture:
    """The mixture, kept between pieces of work while it is the same version."""
    return load_mixture(at_address(*address).mixture_at)


def here(address: Address) -> tuple[Workshop, StoredMixture]:
    workshop = at_address(*address)
    return workshop, mixture_of(address, str(workshop.mixture_at.resolve()))


def score_contender(address: Address, name: str, report: Report) -> Judged:
    """The nats, or the answers, of one contender that needs no router."""
    if at_address(*address).recipe.labelled:
        report.begin(1)
        grades = grading.grade_contender(address, name)
        report.end(grades.unit.shown(grades.mean()))
        return grades
    workshop, stored = here(address)
    rows, batch = workshop.test_rows(), workshop.recipe.evaluate.batch
    n, e = sum(map(len, rows.values())), len(stored.model.names)
    report.begin(1)
    kind, _, expert = name.partition(":")
    logits, weights = asked(stored.model), None
    if kind == "average":
        logits = logits_of(averaged(workshop, stored))
    elif kind in CONTROLS:
        control = lone(workshop, plan_of(workshop, kind), workshop.part_at(kind))
        logits, gates = logits_of(control.decoder), control.gates(n)
        weights = None if gates is None else gates.weights
    elif kind == "uniform":
        weights = controls.uniform(n, e)
    else:
        weights = controls.fixed(stored.model.names.index(expert) if expert else -1, n, e)
    scores = score(logits, rows, weights, batch)
    report.end(f"{mean_nats(scores):.3f} nats a token")
    return scores


def asked(mixture: Mixture) -> Logits:
    """What a mixture says under given gates; without any, at level `token`, under its own."""
    if isinstance(mixture, ModelMixture):
        return mixture.score
    return lambda ids, gates: mixture.score(ids, require(gates, ids))


def decides_on(workshop: Workshop, name: str) -> bool:
    """Whether a router decides before every token: then its decisions on prompts are not all that it decides."""
    return name == "router" and workshop.recipe.mixture.level == "token"


def score_weights(address: Address, weights: Float[Tensor, "n e"] | None, report: Report) -> Judged:
    """The nats, or the answers, of the mixture under given decisions; None: it decides before every token."""
    if weights is not None and at_address(*address).recipe.labelled:
        report.begin(1)
        grades = grading.grade_weights(address, weights)
        report.end(grades.unit.shown(grades.mean()))
        return grades
    workshop, stored = here(address)
    report.begin(1)
    scores = score(asked(stored.model), workshop.test_rows(), weights, workshop.recipe.evaluate.batch)
    report.end(f"{mean_nats(scores):.3f} nats a token")
    return scores


@torch.inference_mode()
def decide(address: Address, report: Report) -> Decisions:
    """The decisions of all routers on the test rows."""
    workshop = at_address(*address)
    return decisions_on(workshop, [row for some in rows_of(workshop).values() for row in some], report)


@torch.inference_mode()
def decide_alike(address: Address, report: Report) -> dict[str, dict[str, Any]]:
    """How every router does on prompts that are alike in length."""
    workshop = at_address(*address)
    alike = matched_rows(workshop)
    decisions = decisions_on(workshop, [row for some in alike.values() for row in some], report)
    return {name: matched_report(workshop, alike, weights) for name, (weights, _) in decisions.items()}


def decisions_on(workshop: Workshop, rows: Sequence[Tokens | LabelledTokens], report: Report) -> Decisions:
    """The decisions of all routers, from one reading of their features."""
    wanted = specs(workshop)
    routers = {name: stored_router(workshop, name) for name in wanted}
    features = list(dict.fromkeys(spec.feature for spec in wanted.values()))
    read = dict(zip(features, features_of(workshop, rows, features, report), strict=True))
    decisions = Decisions()
    for name, router in routers.items():
        routing = router.selection(router.router(read[wanted[name].feature]))
        order = [router.names.index(expert) for expert in workshop.recipe.experts]
        decisions[name] = routing.weights[:, order].float(), routing.logits[:, order]
    report.end(f"{len(routers)} routers")
    return decisions


def stored_router(workshop: Workshop, name: str) -> StoredRouter:
    at = workshop.router_at if name == "router" else workshop.rival_at(name)
    return load_router(at, workshop.base_fingerprint)


# what the scores say


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
    workshop: Workshop,
    name: str,
    decisions: dict[str, tuple[Tensor, Tensor]],
    routed: Mapping[str, Judged],
    rows: Mapping[str, Sequence[Tokens | LabelledTokens]],
    brief: bool = False,
) -> dict[str, Any]:
    """How a router decided on the test rows of domains that have an expert, and what that cost."""
    names, spec = tuple(workshop.recipe.experts), specs(workshop)[name]
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
    validation = stored_router(workshop, name).manifest["metrics"]
    own = {
        "kind": spec.kind,
        "feature": str(spec.feature),
        "selection": spec.selection,
        "level": "token" if decides_on(workshop, name) else "sequence",
        "examples": str(spec.examples or "all"),
        "loss": terms_of(spec),
        routed[name].unit.key: routed[name].unit.figure(routed[name].mean()),
        "validation_macro_f1": validation["validation_macro_f1"],
    }
    told = ("accuracy", "macro_f1", "utilisation", "utilisation_entropy", "utilisation_evenness")
    return own | ({key: report[key] for key in told} if brief else report)


def samples(workshop: Workshop, mixture: StoredMixture, rows: dict[str, list[Tokens]]) -> list[dict[str, Any]]:
    """A few prompts of each domain, how the mixture routed them and what it wrote."""
    engine = Engine(mixture.model, mixture.tokenizer)
    shown = []
    for domain, some in rows.items():
        for row in some[: workshop.recipe.evaluate.samples]:
            prompt = mixture.tokenizer.decode(row.ids[: row.prompt])
            room = mixture.model.context - row.prompt
            if room < 1:
                continue
            new, given = min(SAMPLE_TOKENS, room), row.ids[: row.prompt]
            ((made,),) = engine.generate([given], max_new_tokens=new, sampling=Sampling())
            shown.append(
                {
                    "domain": domain,
                    "prompt": prompt,
                    "text": made.text,
                    "finish": made.finish,
                    "chosen": made.routing.chosen,
                    "weights": made.routing.weights,
                    "reference": mixture.tokenizer.decode(row.ids[row.prompt :]),
                    "tokens": owned(mixture, row),
                }
            )
    return shown


def owned(mixture: StoredMixture, row: Tokens) -> list[list[Any]]:
    """Of each token of a row: its text, who predicts it best, the nats of that part and of the base.

    The texts join to the prompt and the reference as they are decoded, each by itself.
    """
    texts = pieces(mixture.tokenizer.decode, row.ids[: row.prompt])
    texts += pieces(mixture.tokenizer.decode, row.ids[row.prompt :])
    owners = token_owners(asked(mixture.model), row.ids, tuple(mixture.model.names))
    rounded = ((who, *(nats and round(nats, 4) for nats in both)) for who, *both in owners)
    return [[text, *owner] for text, owner in zip(texts, rounded, strict=True)]
