"""Routers as parts of a run: the mixture's own, and those it is compared with, on features read once for all of them.

Knows nothing about how experts were trained: a prompt's label is the expert whose text it is, and what the mixture
loses on it is asked of the experts as they are.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from moesaic.artefacts.router import ENCODER, INFO, StoredRouter, save_router
from moesaic.artefacts.sentence_encoder import KIND as ENCODER_KIND
from moesaic.artefacts.sentence_encoder import StoredEncoder
from moesaic.config import Feature
from moesaic.data.batches import by_length
from moesaic.data.rows import Example
from moesaic.data.splits import take
from moesaic.errors import DataError, MoesaicError, RecipeError, WeightsError
from moesaic.files import MANIFEST, digest, read_jsonl, read_manifest, write_json
from moesaic.model.features import read_all
from moesaic.routing.states import Features, joined, means_of, picked
from moesaic.runs.checkpoints import drop_logs, training, trial_at
from moesaic.runs.jobs import Jobs, Report
from moesaic.runs.part import Part, Work
from moesaic.runs.progress import Progress
from moesaic.sections.routers import EncoderFeature, FeatureSpec, RouterLoss, RouterSpec
from moesaic.stages.experts import folders_of, made_here, version_of
from moesaic.stages.token_features import token_features
from moesaic.tasks import Address, Run, open_run
from moesaic.train.mixture_loss import Table, WeightedLoss, computed
from moesaic.train.routers import Labelled, selection_of, train_router

BATCH = 32
SPLITS = ("train", "validation")
VALIDATION_PROMPTS = 400  # of each expert: what calibration and the choice of an epoch rest on
ASKED_PROMPTS = 100  # of each expert, where the mixture is asked anew in every epoch

UNTAUGHT = (
    "loss.task gives the router no gradient: top_1 with renormalise weighs 1, whoever is chosen; it learns from the "
    "other losses alone. Explore with gumbel, or set renormalise: false, or selection: soft"
)


def label_of(spec: RouterSpec) -> str:
    """The name of a compared router, for folders and tables."""
    few = f"-{spec.examples}" if spec.examples else ""
    kept = f"-{spec.selection}" if spec.selection != "top_1" else ""
    usual = dict(RouterLoss())
    learned = "".join(f"-{term}-{weight:g}" for term, weight in spec.loss if weight != usual[term])
    learned += f"-{spec.exploration.kind}" if spec.exploration.kind != "none" else ""
    learned += f"-{spec.init}" if spec.init else ""
    return f"{spec.kind}-{str(spec.feature).replace('@', '_at_')}{few}{kept}{learned}"


def terms_of(spec: RouterSpec) -> str | None:
    """What a router's training adds up, as in `task + 0.01 balance, gumbel`; None: it is not trained by gradient."""
    if "loss" in spec.idle():
        return None
    terms = [term if weight == 1 else f"{weight:g} {term}" for term, weight in spec.loss if weight]
    return " + ".join(terms) + (f", {spec.exploration.kind}" if spec.exploration.kind != "none" else "")


def specs(run: Run) -> dict[str, RouterSpec]:
    """All routers to train: the mixture's own as `router`, then those compared; a keyword router always among them."""
    router = run.recipe.router
    own = RouterSpec(
        **{field: getattr(router, field) for field in router.model_fields_set & set(RouterSpec.model_fields)}
    )
    rivals = [*router.compare]
    if all(spec.kind != "keyword" for spec in [own, *rivals]):
        rivals.append(RouterSpec(kind="keyword"))
    found = {"router": own}
    for spec in rivals:
        label = label_of(spec)
        found[f"{label}-{digest(spec.model_dump())[:6]}" if label in found else label] = spec
    return found


class RouterPart(Part):
    """A router that is trained in the run."""

    stage = "router"

    def __init__(self, run: Run, name: str, spec: RouterSpec):
        super().__init__(run.dir)
        self.source, self.name, self.spec = run, name, spec

    @property
    def at(self) -> Path:
        return self.run.router_at(self.name)

    def needs(self) -> tuple[Path, ...]:
        experts = folders_of(self.source).values() if self.spec.loss.task else ()
        return (self.source.models.base_at, *experts)

    def require_needs(self, needed: Sequence[Part], told: Progress) -> None:
        """Refuse to train a router without its experts, with the reason why it needs them."""
        if self.spec.loss.task:
            versions(self.source)
        super().require_needs(needed, told)

    @property
    def title(self) -> str:
        """The router as progress and logs call it."""
        return self.name if self.name == "router" else f"router {self.name}"

    @property
    def token_level(self) -> bool:
        """Whether the router decides before every token; then its decisions on prompts are not all that it decides."""
        return self.name == "router" and self.run.recipe.mixture.level == "token"

    def inputs(self) -> dict[str, Any]:
        """Everything that the training of the router depends on."""
        recipe, spec, models = self.run.recipe, self.spec, self.source.models
        rows = ((n, split) for n in recipe.experts for split in SPLITS)
        texts = [[e.prompt, e.response] for n, split in rows for e in prompts_of(self.source, n, split)]
        feature = (
            spec.feature if isinstance(spec.feature, str) else {"encoder": models.encoder(spec.feature).fingerprint}
        )
        parts = {"parts": dict(versions(self.source))} if spec.loss.task else {}
        return {
            **parts,
            **({"level": "token"} if recipe.mixture.level == "token" else {}),
            "router": {
                **spec.model_dump(mode="json"),
                "feature": feature,
                "prompt_tokens": recipe.router.prompt_tokens,
            },
            "experts": {name: {"keywords": expert.keywords} for name, expert in recipe.experts.items()},
            "train": {"length": recipe.train.length},
            "data": digest(texts),
            "base": self.source.task.foundation.fingerprint,
        }

    def missing(self) -> MoesaicError:
        hint = "train it first: moesaic train-router RECIPE"
        return RecipeError("there is no router yet", path=self.at, hint=hint)

    def together(self) -> Callable[[Sequence["RouterPart"], Progress, Jobs], None]:
        return train_routers


def train_routers(parts: Sequence[RouterPart], told: Progress, jobs: Jobs) -> None:
    """Train routers; each split's features are read once for all of them, in parallel."""
    read = read_for(parts, jobs)
    for part in parts:
        train_and_publish(part, read, jobs.report(part.title))


# --- what routers learn from


class Read(NamedTuple):
    """Each feature of some prompts, and of how many prompts that feature is of the beginning only."""

    features: list[Features]
    truncated: list[int]


Owned = tuple[str, str]
"""A split and the expert whose prompts are read."""


@dataclass(frozen=True)
class Material:
    """Everything that some routers learn from, by split and expert: features of prompts; the same before tokens of
    responses, for a router that decides there; and what each expert alone loses.
    """

    order: list[FeatureSpec]
    features: Mapping[Owned, Read]
    tokens: Mapping[Owned, list[torch.Tensor]]
    losses: Mapping[Owned, Table]


def read_for(parts: Sequence[RouterPart], jobs: Jobs) -> Material:
    """Read what these routers learn from.

    No more prompts are read than a feature's hungriest router asks for; each takes the first of them, in hash order.
    """
    run = parts[0].source
    every = [(split, expert) for split in SPLITS for expert in run.recipe.experts]
    order = list(dict.fromkeys(feature for part in parts for feature in part.spec.reads))
    asked = {feature: [part.spec for part in parts if feature in part.spec.reads] for feature in order}
    prompts: dict[str, Work] = {
        f"features {split} {expert}": partial(
            read_features,
            run.address,
            expert,
            split,
            {feature: max(most_of(spec, split) for spec in some) for feature, some in asked.items()},
        )
        for split, expert in every
    }
    running: dict[str, Work] = {
        f"running {split} {expert}": partial(
            read_tokens, run.address, expert, split, [str(one) for one in part.spec.reads], most_of(part.spec, split)
        )
        for part in parts
        if part.token_level
        for split, expert in every
    }
    read = jobs.run(prompts | running)
    # Where whoever is chosen has all the weight, each expert by itself is all that can be asked: computed once.
    tabled = [part.spec for part in parts if part.spec.loss.task and part.spec.certain]
    slopes = any(not spec.untaught for spec in tabled)
    tables: dict[str, Work] = {
        f"losses {split} {expert}": partial(
            tabulate,
            run.address,
            versions(run),
            expert,
            split,
            max(most_of(spec, split) for spec in tabled),
            slopes and split == "train",
        )
        for split, expert in (every if tabled else ())
    }
    found = jobs.run(tables)
    return Material(
        order,
        {one: read[f"features {one[0]} {one[1]}"] for one in every},
        {one: read[f"running {one[0]} {one[1]}"] for one in (every if running else ())},
        {one: found[f"losses {one[0]} {one[1]}"] for one in (every if tables else ())},
    )


def labelled(part: RouterPart, material: Material, split: str, report: Report) -> Labelled:
    """The features that one router learns from in one split, each with the expert whose prompt it is of."""
    names = tuple(part.run.recipe.experts)
    if part.token_level:
        found = [material.tokens[split, expert] for expert in names]
        owners = torch.arange(len(names)).repeat_interleave(torch.tensor([len(one[0]) for one in found]))
        first, last = (torch.cat([one[at] for one in found]) for at in (0, -1))
        return Labelled(first, owners, last)
    limit, places = most_of(part.spec, split), [material.order.index(feature) for feature in part.spec.reads]
    every = [material.features[split, expert].features for expert in names]
    features, beside = (joined([one[at][:limit] for one in every]) for at in (places[0], places[-1]))
    sizes = [len(one[places[0]][:limit]) for one in every]
    labels = torch.repeat_interleave(torch.arange(len(names)), torch.tensor(sizes))
    return Labelled(features, labels, means_of(beside), task_of(part, material, split, limit, report))


def task_of(part: RouterPart, material: Material, split: str, limit: int, report: Report) -> WeightedLoss | None:
    """The loss of the mixture as a router's task; None where the router does not learn from it."""
    run, names = part.source, tuple(part.run.recipe.experts)
    if not part.spec.loss.task:
        return None
    if part.spec.certain:
        return Table.cat([material.losses[split, expert][:limit] for expert in names])
    rows = [row for expert in names for row in rows_of(run, expert, split, limit)]
    return computed(run.task.losses(report.kept(frozen_experts, run.address, versions(run)), rows))


# --- one router


def train_and_publish(part: RouterPart, material: Material, report: Report) -> None:
    """Train one router on what was read, and publish it with its record."""
    run, spec, recipe = part.source, part.spec, part.run.recipe
    names = tuple(recipe.experts)
    train, validation = (labelled(part, material, split, report) for split in SPLITS)
    words = {i: e.keywords for i, e in enumerate(recipe.experts.values()) if e.keywords}
    report.begin(spec.epochs * -(-len(train.labels) // spec.batch))
    trial = trial_at(spec.lr)
    drop_logs(part.run, part.at, [trial])
    if spec.untaught:
        report.warn(UNTAUGHT)
    with training(part.run, part.at, trial, part.inputs(), report) as (keeper, record):
        router, metrics = train_router(spec, train, validation, words, len(names), recipe.seed, record, keeper)
    log = [row for _, row in read_jsonl(keeper.log_at)] if keeper.log_at.is_file() else []
    encoder = run.models.encoder(spec.encoder) if spec.encoder else None
    stored = StoredRouter(router, spec.kind, names, str(spec.feature), selection_of(spec), {}, encoder)
    facts = {
        "stage_key": part.key,
        "prompt_tokens": recipe.router.prompt_tokens,
        "seed": recipe.seed,
        "metrics": {f"validation_{key}": value for key, value in metrics.items()},
        **({"task_gradient": not spec.untaught} if spec.loss.task else {}),
        **run.task.foundation.told,
    }
    if spec.encoder and (origin := run.models.located(spec.encoder.model).origin):
        facts["encoder_origin"] = origin
    info = {
        "router": spec.model_dump(mode="json"),
        "examples": {n: int((train.labels == i).sum()) for i, n in enumerate(names)},
        "validation_examples": len(validation.labels),
        "validation": metrics,
        "curve": [{key: row[key] for key in ("step", "loss", "lr", "score")} for row in log if "score" in row],
    }
    sizes = [*router.state_dict().values()]
    encoder_at = published_encoder(run, encoder) if encoder else None
    if encoder:
        place = material.order.index(spec.feature)
        cut = {split: sum(material.features[split, n].truncated[place] for n in names) for split in SPLITS}
        info["truncated"] = cut  # texts of which the encoder reads the beginning only
        sizes += [] if encoder_at else encoder.sentences.state_dict().values()

    def write(folder: Path) -> None:
        write_json(folder / INFO, info)
        save_router(folder, stored, run.task.foundation.fingerprint, facts, encoder_at)

    part.run.publish(part.at, write, sum(t.numel() * t.element_size() for t in sizes))
    part.run.forget(part.at)
    told = f", loss of the task {metrics['task']:.3f}" if spec.loss.task else ""
    report.end(f"validation macro-F1 {metrics['macro_f1']:.3f}, accuracy {metrics['accuracy']:.3f}{told}")


def published_encoder(run: Run, wanted: StoredEncoder) -> Path | None:
    """The folder, in that of a router which reads it, where the run holds a sound copy of an encoder already."""
    for name in specs(run):
        folder = run.dir.router_at(name) / ENCODER
        try:
            found = read_manifest(folder, ENCODER_KIND) if (folder / MANIFEST).is_file() else {}
        except WeightsError:
            continue  # whoever reads that router says what is damaged
        if found.get("fingerprint") == wanted.fingerprint:
            return folder
    return None


# --- prompts and rows


def prompts_of(run: Run, expert: str, split: str) -> list[Example]:
    """The texts whose prompts stand for an expert: of its data, or the examples given for one trained elsewhere.

    Of examples, one in five is held out.
    """
    spec = run.recipe.experts[expert]
    if spec.data:
        return getattr(run.materials.domains[expert], split)
    given = take(run.materials.texts(spec.examples or []), sys.maxsize)
    if len(given) < 2:
        field, hint = f"experts.{expert}.examples", "one to learn from and one to hold out, better ten or more"
        raise DataError("too few examples", field=field, expected="at least 2", got=len(given), hint=hint)
    held_out = max(1, len(given) // 5)
    return given[:held_out] if split == "validation" else given[held_out:]


def most_of(spec: RouterSpec, split: str) -> int:
    """How many prompts of an expert's split a router sees at most.

    Weights of every size ask the mixture anew in every epoch, so that there are fewer to validate on.
    """
    if split == "train":
        return spec.examples or sys.maxsize
    return ASKED_PROMPTS if spec.loss.task and not spec.certain else VALIDATION_PROMPTS


def rows_of(run: Run, expert: str, split: str, most: int) -> list[Any]:
    """The prompts of an expert's split with their responses or labels, in hash order so that a limit is unbiased."""
    examples, length = take(prompts_of(run, expert, split), most), run.recipe.train.length
    return run.task.encoded(examples, length, expert)


# --- what the mixture loses


Versions = tuple[tuple[str, str], ...]
"""The experts by name, and what each is."""


def versions(run: Run) -> Versions:
    """The experts as they are now: those trained elsewhere by their weights."""
    found = []
    for name, folder in folders_of(run).items():
        if made_here(run, name) and not (folder / MANIFEST).is_file():
            what = f"there is no expert '{name}' yet, and loss.task is measured with it"
            raise RecipeError(what, path=folder, hint=f"train it first: moesaic train-expert RECIPE --expert {name}")
        found.append((name, version_of(run, name, folder)))
    return tuple(found)


def frozen_experts(address: Address, experts: Versions) -> Any:
    """All experts over one base, frozen."""
    run = open_run(address)
    folders = folders_of(run)
    return run.task.frozen_experts({name: folders[name] for name, _ in experts})


def tabulate(
    address: Address, experts: Versions, expert: str, split: str, most: int, slopes: bool, report: Report
) -> Table:
    """Compute what each expert alone loses on the responses of one expert's split, in the order of `rows_of`."""
    run = report.kept(open_run, address)
    rows = rows_of(run, expert, split, most)
    report.begin(len(rows) * len(experts))
    weighed = run.task.losses(report.kept(frozen_experts, address, experts), rows)
    found = Table.of(weighed, len(rows), len(experts), slopes, lambda n: report.row({"step": n}))
    report.end("computed")
    return found


# --- features


def read_features(address: Address, expert: str, split: str, most: dict[FeatureSpec, int], report: Report) -> Read:
    """Read each feature of so many prompts of one expert's split, in the order of `rows_of`."""
    run = report.kept(open_run, address)
    rows = rows_of(run, expert, split, max(most.values()))
    found: dict[FeatureSpec, Features] = {}
    cut: dict[FeatureSpec, int] = {}
    for limit in sorted(set(most.values())):
        some = [feature for feature in most if most[feature] == limit]
        found |= zip(some, features_of(run, rows[:limit], some, report), strict=True)
        texts = run.task.texts(rows[:limit])
        encoders = [None if isinstance(feature, str) else run.models.encoder(feature) for feature in some]
        cut |= zip(some, (one.sentences.truncated(texts) if one else 0 for one in encoders), strict=True)
    report.end(f"read; {max(cut.values())} texts are longer than the encoder reads" if any(cut.values()) else "read")
    return Read([found[feature] for feature in most], [cut[feature] for feature in most])


def read_tokens(
    address: Address, expert: str, split: str, features: list[str], most: int, report: Report
) -> list[torch.Tensor]:
    """Read each feature before some tokens of each response, where decisions are made before every token."""
    run = report.kept(open_run, address)
    rows = rows_of(run, expert, split, most)
    report.begin(1)
    found = [token_features(Feature.parse(feature), run.models.base.decoder, rows) for feature in features]
    report.end(f"{len(found[0])} tokens")
    return found


@torch.no_grad()
def features_of(run: Run, rows: Sequence[Any], features: list[FeatureSpec], report: Report) -> list[Features]:
    """Features of rows in their order: those of the base from one pass of it, each encoder's from one of its own."""
    of_base = [feature for feature in features if isinstance(feature, str)]
    encoders = [feature for feature in features if not isinstance(feature, str)]
    report.begin(len(rows) * (bool(of_base) + len(encoders)))
    found: dict[FeatureSpec, Features] = {}
    if of_base:
        found |= zip(of_base, states_of(run, rows, of_base, report), strict=True)
    for place, feature in enumerate(encoders, bool(of_base)):
        found[feature] = sentences_of(run, rows, feature, len(rows) * place, report)
    return [found[feature] for feature in features]


def sentences_of(run: Run, rows: Sequence[Any], feature: EncoderFeature, reported: int, report: Report) -> torch.Tensor:
    """The encoder's vector of each row's prompt; a text that comes again is not computed again."""
    texts, sentences = run.task.texts(rows), run.models.encoder(feature).sentences
    once = sorted(set(texts), key=lambda text: (len(text), text))
    known: dict[str, torch.Tensor] = {}
    for start in range(0, len(once), BATCH):
        some = once[start : start + BATCH]
        known |= zip(some, sentences(some), strict=True)
        report.row({"step": reported + len(known)})
    return torch.stack([known[text] for text in texts])


def states_of(run: Run, rows: Sequence[Any], features: list[str], report: Report) -> list[Features]:
    """The base's states of rows, in their order, computed in batches of like length."""
    parsed = [Feature.parse(feature) for feature in features]
    order: list[int] = []
    chunks: list[list[Features]] = []
    for chosen in by_length([row.prompt for row in rows], BATCH):
        batch = run.task.prompts([rows[i] for i in chosen])
        chunks.append(read_all(parsed, run.task.body, len(run.recipe.experts), batch))
        order += chosen
        report.row({"step": len(order)})
    back = torch.tensor(order).argsort()
    return [picked(joined([chunk[i] for chunk in chunks]), back) for i in range(len(parsed))]
