"""Validation rows measured through a mixture, and the rule by which a round's expert replaces the one before it.

Knows nothing about training, nor where states lie.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moesaic.artefacts.router import load_router
from moesaic.data.rows import Example
from moesaic.data.splits import chosen_of
from moesaic.evaluate.statistics import NEGLIGIBLE, Difference, Scores, paired
from moesaic.routing.states import means_of
from moesaic.runs.jobs import Report
from moesaic.stages.routers import WORDING, features_of, specs
from moesaic.tasks import Run

Start = Mapping[str, Mapping[str, float]]
"""Domain -> key of a validation row -> its loss through the mixture when the domain joined."""


@dataclass(frozen=True)
class HeldOut:
    """Validation rows of all domains, encoded, with the domain, the group and the key of each."""

    rows: list[Any]
    domains: list[str]
    groups: list[str]
    keys: list[str]

    def of(self, domain: str) -> Tensor:
        """The indices of a domain's rows."""
        return torch.tensor([index for index, one in enumerate(self.domains) if one == domain])

    def scores(self, losses: Tensor, counts: Tensor, indices: Tensor) -> Scores:
        """The losses of some rows, and the number of summands of each, as results of one contender."""
        some = indices.tolist()
        columns = [self.domains[i] for i in some], [self.groups[i] for i in some]
        return Scores(losses[indices].double().numpy(), counts[indices].double().numpy(), *columns)


@dataclass(frozen=True)
class Measured:
    """Losses of validation rows, and their summands: through the mixture, and of one domain by its expert alone."""

    mixture: Tensor
    alone: Tensor
    counts: Tensor
    weights: Tensor


def held_out(run: Run, start: Start) -> HeldOut:
    """The validation rows that experts are chosen by, and all rows that a start was measured on."""
    rows, domains, groups, keys = list[Any](), list[str](), list[str](), list[str]()
    for name, domain in run.materials.domains.items():
        chosen = {*chosen_of(domain.validation, run.task.chosen_by)}
        known = start.get(name, {})
        numbered = enumerate(keyed(domain.validation))
        some = [(key, one) for at, (key, one) in numbered if at in chosen or key in known]
        rows += run.task.encoded([one for _, one in some], run.recipe.train.length, name)
        domains += [name] * len(some)
        groups += [one.group for _, one in some]
        keys += [key for key, _ in some]
    return HeldOut(rows, domains, groups, keys)


def keyed(examples: Sequence[Example]) -> list[tuple[str, Example]]:
    """Examples with names that appended rows do not change: the group, and the position inside it."""
    seen = Counter[str]()
    found = []
    for example in examples:
        found.append((f"{example.group} {seen[example.group]}", example))
        seen[example.group] += 1
    return found


@torch.inference_mode()
def decided(run: Run, router: Path, rows: Sequence[Any], report: Report) -> Tensor:
    """The weights (n, e) that a router gives the recipe's experts on rows."""
    stored, feature = load_router(router, run.task.foundation.fingerprint), specs(run)["router"].feature
    features = list(dict.fromkeys([WORDING, feature]))
    read = dict(zip(features, features_of(run, rows, features, report), strict=True))
    counts = means_of(read[WORDING])
    assert counts is not None
    report.end(f"{len(rows)} rows are decided")
    routing = stored.weigh(read[feature], counts)
    return routing.weights[:, [stored.names.index(name) for name in run.recipe.experts]].float()


def measure(
    run: Run,
    folders: Mapping[str, Path],
    weights: Tensor,
    held: HeldOut,
    name: str,
    before: Measured | None = None,
) -> Measured:
    """Measure the mixture of the experts in these folders under given decisions, and one expert alone on its domain.

    `before`: the same rows measured with another expert `name`. Rows that are decided alike and do not ask that expert
    keep their losses.
    """
    index, own = [*run.recipe.experts].index(name), held.of(name)
    losses = run.task.losses(run.task.frozen_experts(folders), held.rows)
    touched = torch.arange(len(held.rows))
    mixture, alone, counts = (torch.zeros(len(held.rows), dtype=torch.float64) for _ in range(3))
    if before is not None:
        touched = ((weights != before.weights).any(1) | (weights[:, index] > 0)).nonzero()[:, 0]
        mixture, counts = before.mixture.clone(), before.counts.clone()
    found = losses(touched, weights[touched], False)
    mixture[touched], counts[touched] = found.sums.double(), found.counts.double()
    only = torch.zeros(len(own), weights.shape[1])
    only[:, index] = 1.0
    alone[own] = losses(own, only, False).sums.double()
    return Measured(mixture, alone, counts, weights)


def start_of(held: HeldOut, measured: Measured, domains: Sequence[str]) -> dict[str, dict[str, float]]:
    """The losses through the mixture of the rows of these domains, by their keys."""
    losses = measured.mixture.tolist()
    return {name: {held.keys[i]: losses[i] for i in held.of(name).tolist()} for name in domains}


def verdict(held: HeldOut, name: str, before: Measured, after: Measured, start: Start, seed: int) -> dict[str, Any]:
    """Judge a round: the outcome, and the figures that it rests on.

    The new expert is kept if its validation loss is lower beyond noise (the paired interval lies below 0) and no domain
    is worse through the mixture beyond noise: worse than before the round, or worse than at its start and losing.
    """

    def compared(get: Callable[[Measured], Tensor], indices: Tensor) -> tuple[Scores, Scores]:
        old, new = (held.scores(get(one), after.counts, indices) for one in (before, after))
        return new, old

    new, old = compared(lambda one: one.alone, held.of(name))
    gain = paired(new, old, seed=seed)
    facts: dict[str, Any] = {"before": old.mean(), "after": new.mean(), "difference": [*gain], "domains": {}}
    worse = []
    for domain in dict.fromkeys(held.domains):
        indices = held.of(domain)
        new, old = compared(lambda one: one.mixture, indices)
        change = paired(new, old, seed=seed)
        drift = since(held, domain, after, start, seed)
        facts["domains"][domain] = {"before": old.mean(), "after": new.mean(), "difference": [*change]}
        facts["domains"][domain] |= {"since_start": [*drift]}
        if change.low > NEGLIGIBLE or (drift.low > NEGLIGIBLE and change.mean > NEGLIGIBLE):
            worse.append(domain)
    clear = gain.high < -NEGLIGIBLE
    outcome = "kept" if clear and not worse else "worse elsewhere" if clear else "no clear gain"
    return {"outcome": outcome, "worse": worse, **facts}


def since(held: HeldOut, domain: str, measured: Measured, start: Start, seed: int) -> Difference:
    """The difference of a domain's loss through the mixture to its start, on the rows of that start."""
    known = start[domain]
    indices = torch.tensor([i for i in held.of(domain).tolist() if held.keys[i] in known])
    new = held.scores(measured.mixture, measured.counts, indices)
    then = np.array([known[held.keys[i]] for i in indices.tolist()])
    return paired(new, Scores(then, new.tokens, new.domains, new.groups), seed=seed)
