"""Ways for a router to know that a prompt belongs to no expert, compared on the same features and the same texts.

Nothing is trained but the routers: the features are those that a recipe's router reads, and characters. Each way gives
a score, higher for "one of mine", and abstains below the limit that leaves 2% of different own validation prompts to
the base, the share that `abstain: auto` allows.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.mixtures import COMPARED
from benchmarks.page import RECIPES, Options, Page, measured_here
from moesaic.data.forms import OTHERS, drawn
from moesaic.data.neutral import neutral
from moesaic.data.splits import take
from moesaic.model.text_counts import SIZE, wording
from moesaic.ops.metrics import auroc
from moesaic.recipe import read
from moesaic.routing.guard import odds
from moesaic.routing.routers import MLPRouter
from moesaic.routing.states import means_of
from moesaic.runs.directory import RunDir
from moesaic.runs.jobs import Cache, Report
from moesaic.sections.routers import RouterSpec
from moesaic.stages.prompt_forms import in_forms
from moesaic.stages.routers import features_of
from moesaic.stages.verbs import pretrain
from moesaic.tasks import Address, Run, open_run
from moesaic.train.guards import HIDDEN, Outcomes, learn, limit_of
from moesaic.train.routers import Labelled, train_router

RECIPES_HERE = {"demo": 600, "five-domains": 300, "smollm2": 150}
"""Recipe -> training prompts of each domain."""
SPLITS = ("train", "validation", "test")
FEATURE = "the router's feature"


@dataclass(frozen=True)
class Split:
    """Vectors and wording of prompts and their outcomes: the number of the domain, or the number of domains."""

    vectors: Tensor
    wording: Tensor
    outcomes: Tensor

    def own(self, domains: int) -> Tensor:
        return self.outcomes < domains


PARTS: dict[str, Callable[[Split], Tensor]] = {
    FEATURE: lambda one: one.vectors,
    "characters": lambda one: one.wording[:, :SIZE],
    "last words": lambda one: one.wording[:, SIZE:],
}
"""What each network of a guard reads."""


def page(options: Options) -> Page:
    """A table for each recipe."""
    parts = [
        "The score of each way is higher for a prompt of a domain. `abstained`: share of own test prompts that the",
        "base would answer; `answered`: share of neutral test text that an expert would answer, of all and by kind.",
        "",
    ]
    for name, rows in RECIPES_HERE.items():
        parts += [*table(name, 12 if options.quick else rows, options), ""]
    return measured_here("\n".join(parts))


def table(name: str, rows: int, options: Options) -> list[str]:
    recipe = read(RECIPES / f"{name}.yaml", COMPARED[name].overrides(next(iter(COMPARED[name].runs)), options))
    with tempfile.TemporaryDirectory() as folder:
        if not recipe.base.place:
            pretrain(recipe, folder)
        run = open_run(Address(RunDir(recipe, Path(folder), True)))
        splits = {split: prompts_of(run, split, rows if split == "train" else max(rows // 3, 12)) for split in SPLITS}
        kinds = [kind for kind, some in neutral("test").items() for _ in some]
        domains = len(recipe.experts)
        lines = [
            f"## {name}",
            "",
            f"Router on `{recipe.router.feature}`, domains {', '.join(recipe.experts)}.",
            "",
            f"| way | AUROC | abstained | answered | {' | '.join(dict.fromkeys(kinds))} |",
            f"|---|---|---|---|{'---|' * len(set(kinds))}",
        ]
        for way, scores in ways(recipe.router, splits, domains).items():
            lines.append(row_of(way, scores, splits, kinds, domains))
    return lines


def row_of(way: str, scores: dict[str, Tensor], splits: dict[str, Split], kinds: Sequence[str], domains: int) -> str:
    held_out, judged = splits["validation"], splits["test"]
    mine = held_out.own(domains)
    own = Outcomes(held_out.vectors, None, held_out.outcomes, mine, torch.zeros_like(mine))
    top = scores["validation"].max().item() + 1  # scores of another scale than log-odds have no even odds
    limit = limit_of(scores["validation"] - top, own, "auto") + top
    mine, found = judged.own(domains), scores["test"]
    left = (found[~mine] < limit).tolist()
    by_kind = [[not one for one, of in zip(left, kinds, strict=True) if of == kind] for kind in dict.fromkeys(kinds)]
    cells = [
        f"{auroc(found[mine].double().numpy(), found[~mine].double().numpy()):.3f}",
        f"{(found[mine] < limit).double().mean():.1%}",
        f"{1 - sum(left) / len(left):.1%}",
        *(f"{sum(some) / len(some):.0%}" for some in by_kind),
    ]
    return f"| {way} | {' | '.join(cells)} |"


def prompts_of(run: Run, split: str, rows: int) -> Split:
    """Own prompts as they are and in other forms (test: as they are), and neutral text."""
    found = [*vectors_of(run, split, rows)]
    domains = len(run.recipe.experts)
    sizes = torch.tensor([len(vectors) for _, vectors, _ in found])
    labels = torch.tensor([domains if domain is None else domain for domain, *_ in found]).repeat_interleave(sizes)
    return Split(torch.cat([v for _, v, _ in found]), torch.cat([c for *_, c in found]), labels)


def vectors_of(run: Run, split: str, rows: int) -> Iterator[tuple[int | None, Tensor, Tensor]]:
    texts = {at: take(getattr(one, split), rows) for at, one in enumerate(run.materials.domains.values())}
    every: dict[int | None, list[Any]] = {**texts, None: [row for some in neutral(split).values() for row in some]}
    for domain, examples in every.items():
        forms = [["as_is"] * len(examples), *([drawn(one, others) for one in examples] for others in OTHERS)]
        for names in forms[:1] if split == "test" else forms:
            prompts = in_forms(run, examples, names, judged=split == "test")
            with torch.no_grad():
                report = Report("", lambda *_: None, Cache())
                vectors = means_of(features_of(run, prompts, [run.recipe.router.feature], report)[0])
            assert vectors is not None
            yield domain, vectors.float(), wording(run.task.texts(prompts))


@torch.no_grad()
def ways(spec: RouterSpec, splits: dict[str, Split], domains: int) -> dict[str, dict[str, Tensor]]:
    """Way -> split -> score."""
    train, held_out = (splits[split] for split in ("train", "validation"))
    own = {split: one.own(domains) for split, one in splits.items()}
    with torch.enable_grad():
        labelled = [
            Labelled(one.vectors[one.own(domains)], one.outcomes[one.own(domains)]) for one in (train, held_out)
        ]
        router, _ = train_router(spec, *labelled, {}, domains, 0, lambda row: None)
        nets = {}
        for way, of in PARTS.items():
            parts = of(train), of(held_out)
            nets[way] = MLPRouter(parts[0].shape[1], domains + 1, HIDDEN, dropout=0.1)
            learn(nets[way], (parts[0], train.outcomes), (parts[1], held_out.outcomes), way != FEATURE, 0)
    logits = {split: router(one.vectors) for split, one in splits.items()}
    mean, deviation = train.vectors[own["train"]].mean(0), train.vectors[own["train"]].std(0).clamp_min(1e-6)
    scaled = {split: (one.vectors - mean) / deviation for split, one in splits.items()}
    centres = torch.stack([scaled["train"][train.outcomes == domain].mean(0) for domain in range(domains)])
    inside = scaled["train"][own["train"]] - centres[train.outcomes[own["train"]]]
    covariance = inside.t() @ inside / len(inside)
    precision = torch.linalg.inv(0.9 * covariance + 0.1 * covariance.diagonal().mean() * torch.eye(len(covariance)))

    def distance(x: Tensor) -> Tensor:
        away = x[:, None] - centres
        return -torch.einsum("ned,df,nef->ne", away, precision, away).min(-1).values

    told = {way: {split: net.eval()(PARTS[way](one)) for split, one in splits.items()} for way, net in nets.items()}
    return {
        "softmax: highest probability": {split: one.log_softmax(-1).amax(-1) for split, one in logits.items()},
        "energy: logsumexp of logits": {split: one.logsumexp(-1) for split, one in logits.items()},
        "distance to class means (Mahalanobis)": {split: distance(one) for split, one in scaled.items()},
        **{
            f"class of neutral text, {way}": {split: odds(found[split]) for split in SPLITS}
            for way, found in told.items()
        },
        "**class of neutral text, all three** (chosen)": {
            split: odds(sum((found[split] for found in told.values()), torch.zeros(()))) for split in SPLITS
        },
    }
