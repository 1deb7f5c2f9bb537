"""Decisions of a run's routers: on test rows, on their middles, on their prompts in other forms, on text of no domain.

Knows nothing about the scores that they lead to.
"""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from moesaic.artefacts.router import StoredRouter, load_router
from moesaic.data.forms import FORMS, OTHERS, drawn, outline, prompt_of
from moesaic.data.rows import Example
from moesaic.data.splits import take
from moesaic.evaluate.outside import Doubt, outside_report
from moesaic.evaluate.statistics import UNSEEN
from moesaic.routing.states import means_of
from moesaic.runs.jobs import Report
from moesaic.runs.part import Work
from moesaic.sections.routers import GATES
from moesaic.stages.gates import mixture_with, route
from moesaic.stages.matched_prompts import matched_report, matched_rows
from moesaic.stages.prompt_forms import in_forms, nobodys, prompts_of
from moesaic.stages.routers import WORDING, features_of, specs
from moesaic.tasks import Address, Run, open_run

Decisions = dict[str, tuple[Tensor, Tensor]]
"""Router -> its weights of rows, for the recipe's experts in their order; the probabilities of these and of none."""
FORM_ROWS = 50
"""Test prompts of each domain that are routed in every form."""


def jobs_of(run: Run) -> dict[str, Work]:
    """The jobs that decide, by name."""
    work: dict[str, Work] = {"decide": partial(decide, run.address)}
    if run.recipe.evaluate.matched:
        work["matched"] = partial(decide_alike, run.address)
    if not run.task.answers and run.recipe.mixture.level == "sequence":
        work |= {"forms": partial(decide_in_forms, run.address), "neutral": partial(decide_on_neutral, run.address)}
    return work


@torch.inference_mode()
def decide(address: Address, report: Report) -> Decisions:
    """The decisions of all routers on the test rows."""
    run = report.cached(open_run, address)
    return decisions_on(run, [row for some in run.task.test_rows.values() for row in some], report)


@torch.inference_mode()
def decide_alike(address: Address, report: Report) -> dict[str, dict[str, Any]]:
    """The reports on all routers on prompts of one length."""
    run = report.cached(open_run, address)
    alike = matched_rows(run.task)
    decisions = decisions_on(run, [row for some in alike.values() for row in some], report)
    return {name: matched_report(run.recipe, alike, weights) for name, (weights, _) in decisions.items()}


@torch.inference_mode()
def decide_in_forms(address: Address, report: Report) -> dict[str, dict[str, dict[str, Any]]]:
    """Router -> form -> its accuracy on test prompts in this form, in wordings that no training has used."""
    run = report.cached(open_run, address)
    names, most = [*run.recipe.experts], min(FORM_ROWS, run.recipe.evaluate.limit)
    tests = {name: take(domain.test, most) for name, domain in run.materials.domains.items() if name in names}
    examples = [example for some in tests.values() for example in some]
    labels = torch.tensor([names.index(name) for name, some in tests.items() for _ in some])
    rows = [row for form in FORMS for row in in_forms(run, examples, [form] * len(examples), judged=True)]
    alone = by_form_alone(run, tests)
    found = dict[str, dict[str, dict[str, Any]]]()
    for router, (weights, _) in decisions_on(run, rows, report).items():
        right = (chosen(weights) == labels.repeat(len(FORMS))).double().unflatten(0, (len(FORMS), -1)).mean(1)
        shares = zip(FORMS, right.tolist(), strict=True)
        found[router] = {
            form: {"rows": len(labels), "accuracy": share, "by_form_alone": alone[form]} for form, share in shares
        }
    return found


def by_form_alone(run: Run, tests: Mapping[str, Sequence[Example]]) -> dict[str, float]:
    """The accuracy, in each form, of a router that sees the outline of a prompt and no word of it.

    It gives every outline the expert that most training prompts of this outline belong to, in the forms that routers
    learn: near the share of the largest domain, where no form tells the domain.
    """
    taught = Counter[tuple[tuple[str, ...], str]]()
    for name in tests:
        for example in take(prompts_of(run, name, "train"), run.recipe.router.examples or sys.maxsize):
            forms = ["as_is", *(drawn(example, others) for others in OTHERS)]
            taught.update((outline(prompt_of(example), form), name) for form in forms)
    usual = Counter[str]()
    for (_, name), count in taught.items():
        usual[name] += count

    def best(of: tuple[str, ...]) -> str:
        return max(tests, key=lambda name: (taught[of, name], usual[name]))

    rows = [(name, example) for name, some in tests.items() for example in some]
    return {
        form: sum(best(outline(prompt_of(example), form)) == name for name, example in rows) / len(rows)
        for form in FORMS
    }


@torch.inference_mode()
def decide_on_neutral(address: Address, report: Report) -> dict[str, dict[str, Doubt]]:
    """Router -> kind of neutral text -> its doubt on test texts of this kind; without routers that never abstain."""
    run = report.cached(open_run, address)
    kinds = nobodys(run, "test")
    examples = [example for some in kinds.values() for example in some]
    decisions = decisions_on(run, in_forms(run, examples, ["as_is"] * len(examples), judged=True), report)
    found = dict[str, dict[str, Doubt]]()
    for router, (weights, shares) in decisions.items():
        if abstains(run, router):
            doubts = zip(kinds, doubt_on(weights, shares, [len(some) for some in kinds.values()]), strict=True)
            found[router] = dict(doubts)
    return found


def abstains(run: Run, router: str) -> bool:
    """Tell whether a router can leave a prompt to the base."""
    stored = stored_router(run, router)
    return stored.kind == "keyword" or stored.guard is not None


def doubt_on(weights: Tensor, shares: Tensor, sizes: Sequence[int]) -> list[Doubt]:
    """The doubt of decisions, in pieces of these sizes."""
    none, silent = shares[:, -1].double().split([*sizes]), (chosen(weights) < 0).split([*sizes])
    return [Doubt(doubt.numpy(), abstained.numpy()) for doubt, abstained in zip(none, silent, strict=True)]


def chosen(weights: Tensor) -> Tensor:
    """The index of the heaviest expert of each row; -1 where a router abstains."""
    return torch.where(weights.sum(-1) > 0, weights.argmax(-1), -1)


def outside_of(run: Run, decisions: Decisions, name: str, kinds: dict[str, Doubt]) -> dict[str, Any]:
    """The report on a router's doubts: on neutral text beside the test rows of domains."""
    weights, shares = decisions[name]
    domains = [domain for domain, some in run.task.test_rows.items() for _ in some]
    own = torch.tensor([domain != UNSEEN for domain in domains])
    (inside,) = doubt_on(weights[own], shares[own], [int(own.sum())])
    return outside_report(inside, kinds)


def decisions_on(run: Run, rows: Sequence[Any], report: Report) -> Decisions:
    """The decisions of all routers, whose features are read once."""
    inside = {name for name, spec in specs(run).items() if spec.kind == GATES}
    wanted = {name: spec for name, spec in specs(run).items() if name not in inside}
    routers = {name: stored_router(run, name) for name in wanted}
    features = list(dict.fromkeys([WORDING, *(spec.feature for spec in wanted.values())]))
    read = dict(zip(features, features_of(run, rows, features, report), strict=True))
    counts, decisions = means_of(read[WORDING]), Decisions()
    assert counts is not None
    for name in specs(run):
        if name in inside:
            mixture = mixture_with(run, name)
            names, routing = mixture.names, route(run, mixture, rows)
        else:
            names, routing = routers[name].names, routers[name].weigh(read[wanted[name].feature], counts)
        order = [names.index(expert) for expert in run.recipe.experts]
        decisions[name] = routing.weights[:, order].float(), routing.probabilities[:, [*order, -1]]
    report.end(f"{len(decisions)} routers")
    return decisions


def stored_router(run: Run, name: str) -> StoredRouter:
    return load_router(run.dir.router_at(name), run.task.foundation.fingerprint)
