"""Routers of every level over the experts of one recipe, compared on the same test rows.

Trains the experts and controls of the recipe as its run does, and gates and routers beside its own. Knows nothing about
terminals.
"""

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from moesaic.artefacts.router import INFO
from moesaic.evaluate.routing_table import Arm, compared
from moesaic.evaluate.score import score, score_best_of_tokens
from moesaic.evaluate.statistics import Judged
from moesaic.files import write_json
from moesaic.generate.speed import tokens_per_second
from moesaic.kinds.parameters import num_parameters
from moesaic.model.decoder import Decoder
from moesaic.ops.ties import ties
from moesaic.recipe import Recipe
from moesaic.routing import Gates
from moesaic.runs.jobs import Report
from moesaic.runs.machine import machine
from moesaic.runs.part import Work
from moesaic.runs.progress import Progress
from moesaic.sections.gates import Balance, Start, TokenGates
from moesaic.sections.routers import GATES, RouterSpec
from moesaic.stages.decisions import decide
from moesaic.stages.evaluation import contenders, decides_on, looked_up, picks_one, score_contender, score_router
from moesaic.stages.experts import folders_of
from moesaic.stages.gates import mixture_with
from moesaic.stages.routers import label_of, specs
from moesaic.stages.verbs import Root, opened
from moesaic.tasks import Address, Run, open_run

FILE = "routing.json"
STARTS: tuple[Start, ...] = ("ridge", "means", "hidden", "cheap_embed", "random")
BALANCES: tuple[Balance, ...] = ("none", "loss", "sign", "quantiles")


def bench_routing(recipe: Recipe, root: Root, progress: Progress | None = None) -> dict[str, Any]:
    """Compare routers over the experts of a recipe, write routing.json into the run directory, and return the figures.

    The arms: the base, every expert, their average and TIES merge, `joint`; routers that decide about prompts; gates in
    every layer, untrained from every start, and trained with every way to balance; and two oracles, per sequence and
    per token, which know the right answer.
    """
    with opened(recipe, root, progress) as bench:
        for stage in ("base", "experts"):
            bench.make(stage)
    wide = widened(recipe)
    with opened(wide, root, progress, makes=False) as bench:
        for stage in ("router", "mixture"):
            bench.make(stage)
        run = bench.run
        scores = scored(run, bench.jobs.run)
        arms = arms_of(run, scores)
        figures = compared(arms, {name: scores[name] for name in arms}, recipe.seed)
        figures |= {"name": recipe.name, "experts": [*recipe.experts], "machine": machine()}
        write_json(run.dir.root / FILE, figures)
        return figures


def widened(recipe: Recipe) -> Recipe:
    """The recipe with more routers to compare."""
    known = {label_of(spec) for spec in (recipe.router, *recipe.router.compare)}
    more = {label: spec for spec in grid(recipe) if (label := label_of(spec)) not in known}
    router = recipe.router.model_copy(update={"compare": [*recipe.router.compare, *more.values()]})
    return recipe.model_copy(update={"router": router})


def grid(recipe: Recipe) -> Iterator[RouterSpec]:
    """Routers of prompts, and gates where the experts can have them."""
    yield RouterSpec(kind="centroid")
    yield RouterSpec(kind="linear")
    most = min(2, len(recipe.experts))
    yield RouterSpec(kind="linear", selection="top_k", k=most)
    if not recipe.kind.routes_inside:
        return
    for start in STARTS:
        yield RouterSpec(kind=GATES, k=most, gates=TokenGates(start=start, steps=0))
    yield RouterSpec(kind=GATES, selection="top_1", gates=TokenGates(steps=0))
    yield RouterSpec(kind=GATES, selection="top_1", renormalise=False, gates=TokenGates())
    for balance in BALANCES if most < len(recipe.experts) else BALANCES[:1]:
        yield RouterSpec(kind=GATES, k=most, gates=TokenGates(balance=balance))


# --- scores


def scored(run: Run, do: Any) -> dict[str, Judged]:
    """The scores of all contenders, routers, merges and oracles, by name."""
    work: dict[str, Work] = {"decide": partial(decide, run.address)}
    work |= {name: partial(score_contender, run.address, name) for name in contenders(run) if name != "joint_wide"}
    work |= {"TIES": partial(score_ties, run.address), "per token": partial(score_tokens, run.address)}
    found = do(work, "scores")
    decisions, names = found.pop("decide"), tuple(run.recipe.experts)
    second: dict[str, Work] = {
        name: partial(score_router, run.address, name, None if decides_on(run, name) else weights)
        for name, (weights, _) in decisions.items()
        if decides_on(run, name) or not picks_one(weights)
    }
    routed = do(second, "scores of routers")
    for name, (weights, _) in decisions.items():
        found[titled(run, name)] = routed[name] if name in routed else looked_up(found, names, weights)
    parts = [found["base"], *(found[f"expert:{name}"] for name in names)]
    merits = torch.stack([torch.from_numpy(part.merit) for part in parts])
    return found | {"per sequence": parts[0].picked(parts, merits.argmin(0).numpy())}


def titled(run: Run, name: str) -> str:
    """The name of a router in the table: what it is, also of the recipe's own."""
    return label_of(specs(run)[name]) if name == "router" else name


def score_ties(address: Address, report: Report) -> Judged:
    """Score the TIES merge of all experts."""
    run = report.cached(open_run, address)
    report.begin(1)
    merged = score(ties_of(run).score, run.task.test_rows, None, run.recipe.evaluate.batch)
    report.end(run.task.shown(merged))
    return merged


@torch.no_grad()
def ties_of(run: Run) -> Decoder:
    """The base with the TIES merge of the changes that the experts make to it, each as a dense model."""
    kind, base = run.task.kind, run.models.fresh_base(run.task.compute).decoder
    experts = run.task.read_experts(folders_of(run)).values()
    dense = [kind.average(run.models.fresh_base(run.task.compute).decoder, [one]) for one in experts]
    for name, weight in base.named_parameters():
        weight.add_(ties([one.get_parameter(name) - weight for one in dense]))
    return base


def score_tokens(address: Address, report: Report) -> Judged:
    """Score the base and the experts with hindsight: for every token the one that predicts it best."""
    run = report.cached(open_run, address)
    report.begin(1)
    model, rows = run.task.mixture.model, run.task.test_rows
    found = score_best_of_tokens(model.score, rows, len(run.recipe.experts), run.recipe.evaluate.batch)
    report.end(run.task.shown(found))
    return found


# --- arms and their costs


def arms_of(run: Run, scores: dict[str, Judged]) -> dict[str, Arm]:
    """What each scored contender is, and what it costs."""
    recipe, kind, base = run.recipe, run.task.kind, run.models.base.decoder
    own = num_parameters(base)
    read = run.task.read_experts(folders_of(run))
    speed = {"dense": tokens_per_second(base, None), "sequence": tokens_per_second(*beside(run))}
    costs = {f"expert:{name}": kind.cost(base, one) for name, one in read.items()}
    arms: dict[str, Arm] = {}
    for name in scores:
        if name in ("per sequence", "per token"):
            arms[name] = Arm(recipe.site, "oracle", name)
        elif name == "uniform":
            arms[name] = Arm(recipe.site, "sequence", "none: all alike", len(read))
        elif name in (*costs, "base", "average", "TIES", "joint"):
            active, pace = costs.get(name, own), speed["sequence" if name in costs else "dense"]
            arms[name] = Arm("", "dense", "", active=active, tokens_per_second=pace)
    mean = round(sum(costs.values()) / len(costs))
    for name, spec in specs(run).items():
        arms[titled(run, name)] = (
            of_gates(run, name, spec)
            if spec.kind == GATES
            else Arm(
                recipe.site,
                "sequence",
                spec.title,
                spec.chosen(len(read)),
                active=mean if spec.chosen(len(read)) == 1 else None,
                tokens_per_second=speed["sequence"] if spec.chosen(len(read)) == 1 else None,
            )
        )
    return arms


def beside(run: Run) -> tuple[Decoder, Gates]:
    """A decoder with all experts beside its own parts, and gates that give one row to the first of them."""
    decoder = run.task.frozen_experts(folders_of(run))
    return decoder, Gates.one(0, 1, len(run.recipe.experts), decoder.norm.weight)


def of_gates(run: Run, name: str, spec: RouterSpec) -> Arm:
    """The arm of gates in every layer."""
    assert spec.gates is not None
    mixture, experts = mixture_with(run, name), [*run.task.read_experts(folders_of(run)).values()]
    nothing = torch.empty(0, len(experts))  # no decision about rows counts here
    counts = run.task.kind.counts(run.models.base.decoder, mixture, experts, nothing)
    info = json.loads((run.dir.router_at(name) / INFO).read_text())
    return Arm(
        run.recipe.site,
        "token",
        spec.gates.start,
        spec.chosen(len(experts)),
        "untrained" if spec.gates.steps == 0 else spec.gates.balance,
        counts["active"],
        tokens_per_second(mixture.decoder, None),
        info["training_tokens"],
        info["validation"]["least_load"],
    )
