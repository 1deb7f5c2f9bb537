"""Routers as parts of a run: the mixture's own, and those it is compared with, on features read once for all of them.

Knows nothing about how experts were trained: a prompt's label is the expert whose text it is, and the mixture's losses
on it are computed by the experts as they are.
"""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from moesaic.artefacts.manifest_words import ENCODER
from moesaic.artefacts.router import INFO, StoredRouter, save_router
from moesaic.artefacts.sentence_encoder import KIND as ENCODER_KIND
from moesaic.artefacts.sentence_encoder import StoredEncoder
from moesaic.config import COUNTS, Feature
from moesaic.data import forms, neutral
from moesaic.data.batches import by_length
from moesaic.data.forms import CUT, OTHERS, drawn
from moesaic.data.splits import take
from moesaic.errors import MoesaicError, RecipeError, WeightsError
from moesaic.files import MANIFEST, digest, read_jsonl, read_manifest, write_json
from moesaic.model.features import read_all
from moesaic.routing.states import Features, joined, means_of, on_host, picked
from moesaic.runs.checkpoints import drop_logs, training, trial_at
from moesaic.runs.directory import RunDir
from moesaic.runs.jobs import Jobs, Report
from moesaic.runs.part import Part, Work
from moesaic.runs.progress import Progress
from moesaic.sections.routers import EncoderFeature, FeatureSpec, RouterLoss, RouterSpec
from moesaic.stages.experts import folders_of, made_here, version_of
from moesaic.stages.prompt_forms import SPLITS, neutral_prompts, neutral_rows, other_forms, prompts_of
from moesaic.stages.token_features import token_features
from moesaic.tasks import Address, Run, open_run
from moesaic.train.guards import Outcomes, Readers, give_voice, train_guard, train_readers
from moesaic.train.mixture_loss import Table, WeightedLoss, computed
from moesaic.train.routers import Labelled, scored, selection_of, train_router

BATCH = 32
VALIDATION_PROMPTS = 400  # of each expert, for calibration and the choice of an epoch
ASKED_PROMPTS = 100  # of each expert, where the mixture computes them anew in every epoch
LEAST_NEUTRAL = 256  # of a split, also where the experts have few prompts

WORDING = "wording"
"""The feature that a guard reads beside its router's."""

UNTAUGHT = (
    "loss.task gives the router no gradient, because top_1 with renormalise gives every choice the weight 1; it learns "
    "from the other losses alone. Explore with gumbel, or set renormalise: false, or selection: soft"
)


def label_of(spec: RouterSpec) -> str:
    """The name of a compared router, for folders and tables."""
    if spec.gates:
        shares = "" if spec.renormalise else "-probabilities"
        count = str(spec.k) if spec.k else {"top_1": "1"}.get(spec.selection, "all")
        how = "untrained" if spec.gates.steps == 0 else spec.gates.balance
        return f"{spec.kind}-{spec.gates.start}-k{count}{shares}-{how}"
    usual, words = dict(RouterLoss()), [spec.kind, str(spec.feature).replace("@", "_at_")]
    words += [str(spec.examples)] if spec.examples else []
    words += [spec.selection] if spec.selection != "top_1" else []
    words += [f"{term}-{weight:g}" for term, weight in spec.loss if weight != usual[term]]
    words += [spec.exploration.kind] if spec.exploration.kind != "none" else []
    words += [spec.match] if spec.match else []
    return "-".join([*words, spec.init] if spec.init else words)


def terms_of(spec: RouterSpec) -> str | None:
    """The terms of a router's loss, as in `task + 0.01 balance, gumbel`; None: it is not trained by gradient."""
    if spec.gates:
        how = "" if spec.gates.balance == "none" else f", balanced by {spec.gates.balance}"
        return None if spec.gates.steps == 0 else f"task{how}"
    if "loss" in spec.idle():
        return None
    terms = [term if weight == 1 else f"{weight:g} {term}" for term, weight in spec.loss if weight]
    return " + ".join(terms) + (f", {spec.exploration.kind}" if spec.exploration.kind != "none" else "")


def specs(run: Run) -> dict[str, RouterSpec]:
    """All routers to train: the mixture's own as `router`, then the compared ones; one of them is a keyword router."""
    router, declared = run.recipe.router, run.recipe.router.model_fields_set & set(RouterSpec.model_fields)
    own, rivals = RouterSpec(**{field: getattr(router, field) for field in declared}), [*router.compare]
    if all(spec.kind != "keyword" for spec in [own, *rivals]):
        rivals.append(RouterSpec(kind="keyword"))
    found = {"router": own}
    for spec in rivals:
        label = label_of(spec)
        found[f"{label}-{digest(spec.model_dump())[:6]}" if label in found else label] = spec
    return found


class RouterPart(Part):
    """A router that is trained in the run."""

    run: RunDir
    stage = "router"

    def __init__(self, run: Run, name: str, spec: RouterSpec):
        super().__init__(run.dir, run.dir.router_at(name))
        self.source, self.name, self.spec = run, name, spec

    def needs(self) -> tuple[Path, ...]:
        experts = folders_of(self.source).values() if self.spec.loss.task else ()
        return (self.source.models.base_at, *experts)

    def require_needs(self, needed: Sequence[Part], progress: Progress) -> None:
        """Refuse to train a router without its experts, and say why it needs them."""
        if self.spec.loss.task:
            versions(self.source)
        super().require_needs(needed, progress)

    @property
    def title(self) -> str:
        return self.name if self.name == "router" else f"router {self.name}"

    @property
    def token_level(self) -> bool:
        """True where the router decides before every token, and not only on prompts."""
        return self.name == "router" and self.run.recipe.mixture.level == "token"

    @property
    def varied(self) -> bool:
        """True where the router learns from each prompt in a second form: not from losses on its response."""
        return not self.source.task.answers and not self.token_level and not self.spec.loss.task

    @property
    def guarded(self) -> bool:
        """True where a guard is trained for the router, so that the base answers what belongs to no expert."""
        wanted = self.spec.abstain != "off" and self.spec.kind != "keyword"
        return wanted and not self.source.task.answers and not self.token_level

    @property
    def reads(self) -> list[FeatureSpec]:
        """The features that the router reads, and its guard."""
        return [*self.spec.reads, WORDING] if self.guarded else self.spec.reads

    def most_neutral(self, split: str) -> int:
        """The largest number of neutral prompts of a split that its guard sees: twice as many as the experts' own."""
        own = (len(prompts_of(self.source, name, split)) for name in self.run.recipe.experts)
        return max(LEAST_NEUTRAL, 2 * sum(min(rows, most_of(self.spec, split)) for rows in own))

    def inputs(self) -> dict[str, Any]:
        """Everything that the training of the router depends on."""
        recipe, spec, models = self.run.recipe, self.spec, self.source.models
        rows = ((n, split) for n in recipe.experts for split in SPLITS)
        texts = [prompts_of(self.source, n, split) for n, split in rows]
        encoder = {"encoder": models.encoder(spec.encoder).fingerprint} if spec.encoder else None
        facts = {"feature": encoder or spec.feature, "prompt_tokens": recipe.router.prompt_tokens}
        return {
            **({"parts": dict(versions(self.source))} if spec.loss.task else {}),
            **({"level": "token"} if recipe.mixture.level == "token" else {}),
            **({"forms": forms.identity()} if self.varied or self.guarded else {}),
            **({"neutral": [neutral.identity(), LEAST_NEUTRAL]} if self.guarded else {}),
            "router": {**spec.model_dump(mode="json"), **facts},
            "experts": {name: {"keywords": expert.keywords} for name, expert in recipe.experts.items()},
            "train": {"length": recipe.train.length},
            "data": self.source.materials.digest_of(texts),
            "base": self.source.task.foundation.fingerprint,
            **self.source.task.compute.key,
        }

    def missing(self) -> MoesaicError:
        hint = "train it first: moesaic train-router RECIPE"
        return RecipeError("there is no router yet", path=self.at, hint=hint)

    def together(self) -> Callable[[Sequence["RouterPart"], Progress, Jobs], None]:
        return train_routers


def train_routers(parts: Sequence[RouterPart], progress: Progress, jobs: Jobs) -> None:
    """Train routers; each split's features are read once for all of them, in parallel."""
    material, known = read_for(parts, jobs), dict[Any, Readers]()
    for part in parts:
        train_and_publish(part, material, jobs.report(part.title), known)


# --- what routers learn from


class Read(NamedTuple):
    """Features of some prompts, and for each feature the number of prompts of which it reads only the beginning."""

    features: dict[FeatureSpec, Features]
    truncated: dict[FeatureSpec, int]


@dataclass(frozen=True)
class Material:
    """Everything that some routers learn from, as the jobs found it: `features` of prompts (Read), and of the same
    prompts in other `forms`; those of `neutral` prompts; `running` features before tokens of responses, for a router
    that decides there (tensors); `losses` of each expert alone (Table).
    """

    found: Mapping[str, Any]

    def of(self, what: str, split: str, experts: Iterable[str]) -> list[Any]:
        return [self.found[f"{what} {split} {expert}"] for expert in experts]

    def other_forms(self, split: str, experts: Sequence[str]) -> list[Any]:
        return [self.found[forms_of(others, split, expert)] for others in OTHERS for expert in experts]


def forms_of(others: Sequence[str], split: str, expert: str) -> str:
    """The name of the job that reads the prompts of an expert in other forms."""
    return f"{' or '.join(others)} {split} {expert}"


def read_for(parts: Sequence[RouterPart], jobs: Jobs) -> Material:
    """Read everything that these routers learn from.

    Of each feature as many prompts are read as the router with the largest limit needs; each router takes the first of
    them, in hash order.
    """
    run = parts[0].source
    every = [(split, expert) for split in SPLITS for expert in run.recipe.experts]
    work: dict[str, Work] = {}
    for split, expert in every:
        most: dict[FeatureSpec, int] = {}
        for part in parts:
            limit = most_of(part.spec, split)
            most |= {feature: max(limit, most.get(feature, 0)) for feature in part.reads}
        work[f"features {split} {expert}"] = partial(read_features, run.address, expert, split, most)
        varied = {feature: most[feature] for part in parts if part.varied for feature in part.reads}
        for others in OTHERS if varied else ():
            work[forms_of(others, split, expert)] = partial(
                read_features, run.address, expert, split, varied, others=others
            )
    guarded = [part for part in parts if part.guarded]
    judging = [*dict.fromkeys(feature for part in guarded for feature in (part.spec.feature, WORDING))]
    for split in SPLITS if guarded else ():
        limit = max(part.most_neutral(split) for part in guarded)
        work[f"neutral {split}"] = partial(read_neutral, run.address, split, judging, limit)
    for part in parts:
        for split, expert in every if part.token_level else ():
            reads, limit = [str(feature) for feature in part.spec.reads], most_of(part.spec, split)
            work[f"running {split} {expert}"] = partial(read_tokens, run.address, expert, split, reads, limit)
    read = jobs.run(work)
    # Where the chosen expert has all the weight, the losses of each expert by itself suffice: computed once.
    tabled = [part.spec for part in parts if part.spec.loss.task and part.spec.certain]
    slopes, tables = any(not spec.untaught for spec in tabled), dict[str, Work]()
    for split, expert in every if tabled else ():
        limit, experts = max(most_of(spec, split) for spec in tabled), versions(run)
        arguments = run.address, experts, expert, split, limit, slopes and split == "train"
        tables[f"losses {split} {expert}"] = partial(tabulate, *arguments)
    return Material(read | jobs.run(tables))


def labelled(part: RouterPart, material: Material, split: str, report: Report) -> Labelled:
    """The features that one router learns from in one split, each with the expert whose prompt it belongs to."""
    names, limit = tuple(part.run.recipe.experts), most_of(part.spec, split)
    first, last = part.spec.reads[0], part.spec.reads[-1]
    if part.token_level:
        found = material.of("running", split, names)
        labels = owners(len(one[0]) for one in found)
        return Labelled(torch.cat([one[0] for one in found]), labels, torch.cat([one[-1] for one in found]))
    read = [one.features for one in material.of("features", split, names)]
    read += [one.features for one in material.other_forms(split, names)] if part.varied else []
    features, beside = (joined([one[feature][:limit] for one in read]) for feature in (first, last))
    counts = [len(one[first][:limit]) for one in read]
    labels = torch.cat([owners(counts[at : at + len(names)]) for at in range(0, len(counts), len(names))])
    return Labelled(features, labels, means_of(beside), task_of(part, material, split, limit, report))


def outcomes(part: RouterPart, material: Material, split: str, own: Labelled) -> Outcomes:
    """The prompts of the experts and the neutral prompts of a split, as a guard learns from them."""
    names, nobodys = tuple(part.run.recipe.experts), material.found[f"neutral {split}"]
    read = [one.features[WORDING] for one in material.of("features", split, names)]
    read += [one.features[WORDING] for one in material.other_forms(split, names)] if part.varied else []
    vectors, theirs = means_of(own.features), means_of(nobodys[part.spec.feature])
    assert vectors is not None and theirs is not None
    limit = most_of(part.spec, split)
    seen = seen_by(part.source, part.most_neutral(split), split, len(theirs))
    counts, theirs = torch.cat([*(one[:limit] for one in read), nobodys[WORDING][seen]]), theirs[seen]
    labels = torch.cat([own.labels, torch.full((len(theirs),), len(names))])
    changed, as_is = torch.zeros(len(labels), dtype=torch.bool), torch.zeros(len(labels), dtype=torch.bool)
    as_is[: len(own.labels)] = True
    if part.varied:
        some = [one for name in names for one in take(prompts_of(part.source, name, split), limit)]
        as_is[len(some) :] = False
        whole = [drawn(one, others) != CUT for others in OTHERS for one in some]
        changed[len(some) : len(some) + len(whole)] = torch.tensor(whole)
    return Outcomes(torch.cat([vectors, theirs]), counts, labels, as_is, changed)


def seen_by(run: Run, most: int, split: str, read: int) -> torch.Tensor:
    """Which of the neutral rows that were read for all routers a guard of at most so many sees."""
    forms_of_each = 1 + len(OTHERS)
    mine = {example.group for example in neutral_prompts(run, split, most)}
    return torch.tensor(
        [example.group in mine for example in neutral_prompts(run, split, read // forms_of_each)] * forms_of_each
    )


def owners(sizes: Iterable[int]) -> torch.Tensor:
    """The index of the expert of each row, from the number of rows of each expert."""
    counts = torch.tensor([*sizes])
    return torch.arange(len(counts)).repeat_interleave(counts)


def task_of(part: RouterPart, material: Material, split: str, limit: int, report: Report) -> WeightedLoss | None:
    """The loss of the mixture as a router's task; None for a router that does not learn from it."""
    run, names = part.source, tuple(part.run.recipe.experts)
    if not part.spec.loss.task:
        return None
    if part.spec.certain:
        return Table.cat([one[:limit] for one in material.of("losses", split, names)])
    rows = [row for expert in names for row in rows_of(run, expert, split, limit)]
    return computed(run.task.losses(report.cached(frozen_experts, run.address, versions(run)), rows))


# --- one router


def train_and_publish(part: RouterPart, material: Material, report: Report, known: dict[Any, Readers]) -> None:
    """Train one router on its material, and publish it with its record.

    `known`: a guard's networks on the wording, by the prompts that they have learned from; this call adds its own.
    """
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
        groups = [[names.index(expert) for expert in some] for some in (spec.groups or {}).values()]
        router, metrics = train_router(spec, train, validation, words, len(names), recipe.seed, record, keeper, groups)
    guard, certainty = None, dict[str, float]()
    if part.guarded:
        taught, held_out = outcomes(part, material, "train", train), outcomes(part, material, "validation", validation)
        prompts = (part.varied, *(most_of(spec, split) for split in SPLITS))
        if prompts not in known:
            known[prompts] = train_readers(taught, held_out, len(names), recipe.seed)
        facts_of = len(names), spec.abstain, recipe.seed, spec.feature in COUNTS, known[prompts]
        guard, certainty = train_guard(taught, held_out, *facts_of)
        if part.varied:
            with torch.no_grad():
                joint = give_voice(guard, router(validation.features), held_out)
            metrics |= scored(joint, validation.labels, len(names))
    log = [row for _, row in read_jsonl(keeper.log_at)] if keeper.log_at.is_file() else []
    encoder = run.models.encoder(spec.encoder) if spec.encoder else None
    stored = StoredRouter(router, spec.kind, names, str(spec.feature), selection_of(spec), {}, encoder, guard)
    facts = {
        "stage_key": part.key,
        "prompt_tokens": recipe.router.prompt_tokens,
        "seed": recipe.seed,
        "metrics": {f"validation_{key}": value for key, value in (metrics | certainty).items()},
        "logs": run.dir.logged(part.at),
        **({"task_gradient": not spec.untaught} if spec.loss.task else {}),
        **run.task.foundation.told,
    }
    if spec.encoder and (origin := run.models.located(spec.encoder.model).origin):
        facts["encoder_origin"] = origin
    info = {
        "router": spec.model_dump(mode="json"),
        "forms": 1 + len(OTHERS) if part.varied else 1,
        "examples": {n: int((train.labels == i).sum()) for i, n in enumerate(names)},
        "validation_examples": len(validation.labels),
        "validation": metrics,
        **({"guard": certainty} if certainty else {}),
        "curve": [{key: row[key] for key in ("step", "loss", "lr", "score")} for row in log if "score" in row],
    }
    sizes = [*router.state_dict().values()]
    encoder_at = published_encoder(run, encoder) if encoder else None
    if encoder:
        cut = {split: material.of("features", split, names) for split in SPLITS}
        info["truncated"] = {split: sum(one.truncated[spec.feature] for one in some) for split, some in cut.items()}
        sizes += [] if encoder_at else encoder.sentences.state_dict().values()

    def write(folder: Path) -> None:
        write_json(folder / INFO, info)
        save_router(folder, stored, run.task.foundation.fingerprint, facts, encoder_at)

    part.run.publish(part.at, write, sum(t.numel() * t.element_size() for t in sizes))
    part.run.forget(part.at)
    task = f", loss of the task {metrics['task']:.3f}" if spec.loss.task else ""
    leaves = f", leaves {certainty['abstained_neutral']:.0%} of neutral text to the base" if certainty else ""
    report.end(f"validation macro-F1 {metrics['macro_f1']:.3f}, accuracy {metrics['accuracy']:.3f}{task}{leaves}")


def published_encoder(run: Run, wanted: StoredEncoder) -> Path | None:
    """The folder in a router's where the run holds a sound copy of an encoder already."""
    for name in specs(run):
        folder = run.dir.router_at(name) / ENCODER
        try:
            found = read_manifest(folder, ENCODER_KIND) if (folder / MANIFEST).is_file() else {}
        except WeightsError:
            continue  # the damage is reported when that router is read
        if found.get("fingerprint") == wanted.fingerprint:
            return folder
    return None


# --- prompts and rows


def most_of(spec: RouterSpec, split: str) -> int:
    """The largest number of prompts of an expert's split that a router sees.

    Fewer prompts serve for validation where the mixture has to compute their losses anew in every epoch.
    """
    if split == "train":
        return spec.examples or sys.maxsize
    return ASKED_PROMPTS if spec.loss.task and not spec.certain else VALIDATION_PROMPTS


def rows_of(run: Run, expert: str, split: str, most: int) -> list[Any]:
    """The prompts of an expert's split with their responses or labels, in hash order, so that a limit is unbiased."""
    examples, length = take(prompts_of(run, expert, split), most), run.recipe.train.length
    return run.task.encoded(examples, length, expert)


# --- losses of the mixture


Versions = tuple[tuple[str, str], ...]
"""The experts by name, each with its identity."""


def versions(run: Run) -> Versions:
    """The experts as they are now; raises for one that is still to be made."""
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
    """Compute the losses of each expert alone on the responses of one expert's split, in the order of `rows_of`."""
    run = report.cached(open_run, address)
    rows = rows_of(run, expert, split, most)
    report.begin(len(rows) * len(experts))
    weighed = run.task.losses(report.cached(frozen_experts, address, experts), rows)
    found = Table.of(weighed, len(rows), len(experts), slopes, lambda n: report.row({"step": n}))
    report.end("computed")
    return found


# --- features


def read_features(
    address: Address,
    expert: str,
    split: str,
    most: dict[FeatureSpec, int],
    report: Report,
    others: Sequence[str] = (),
) -> Read:
    """Read each feature of the first prompts, at most `most`, of one expert's split, in the order of `rows_of`.

    `others`: of each prompt in that one of these forms which is drawn for it, instead of the prompt as it is.
    """
    run = report.cached(open_run, address)
    if others:
        rows: list[Any] = [*other_forms(run, take(prompts_of(run, expert, split), max(most.values())), others)]
    else:
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
    return Read(found, cut)


def read_neutral(
    address: Address, split: str, features: list[FeatureSpec], most: int, report: Report
) -> dict[FeatureSpec, Features]:
    """Read each feature of at most so many neutral prompts of a split."""
    run = report.cached(open_run, address)
    found = features_of(run, neutral_rows(run, split, most), features, report)
    report.end("read")
    return dict(zip(features, found, strict=True))


def read_tokens(
    address: Address, expert: str, split: str, features: list[str], most: int, report: Report
) -> list[torch.Tensor]:
    """Read each feature before some tokens of each response, where decisions are made before every token."""
    run = report.cached(open_run, address)
    rows = rows_of(run, expert, split, most)
    report.begin(1)
    found = [token_features(Feature.parse(feature), run.models.base.decoder, rows) for feature in features]
    report.end(f"{len(found[0])} tokens")
    return found


@torch.no_grad()
def features_of(run: Run, rows: Sequence[Any], features: list[FeatureSpec], report: Report) -> list[Features]:
    """Features of rows in their order: those of the base from one pass, each encoder's from a pass of its own."""
    of_base = [feature for feature in features if isinstance(feature, str)]
    encoders = [feature for feature in features if not isinstance(feature, str)]
    report.begin(len(rows) * (bool(of_base) + len(encoders)))
    found: dict[FeatureSpec, Features] = {}
    if of_base:
        found |= zip(of_base, states_of(run, rows, of_base, report), strict=True)
    for index, feature in enumerate(encoders, bool(of_base)):
        found[feature] = sentences_of(run, rows, feature, len(rows) * index, report)
    return [found[feature] for feature in features]


def sentences_of(run: Run, rows: Sequence[Any], feature: EncoderFeature, reported: int, report: Report) -> torch.Tensor:
    """The encoder's vector of each row's prompt, computed once for equal texts."""
    texts, sentences = run.task.texts(rows), run.models.encoder(feature).sentences
    once = sorted(set(texts), key=lambda text: (len(text), text))
    known: dict[str, torch.Tensor] = {}
    for start in range(0, len(once), BATCH):
        some = once[start : start + BATCH]
        known |= zip(some, sentences(some).cpu(), strict=True)
        report.row({"step": reported + len(known)})
    return torch.stack([known[text] for text in texts])


def states_of(run: Run, rows: Sequence[Any], features: list[str], report: Report) -> list[Features]:
    """The base's states of rows, in their order, computed in batches of like length."""
    parsed = [Feature.parse(feature) for feature in features]
    order: list[int] = []
    chunks: list[list[Features]] = []
    for chosen in by_length([row.prompt for row in rows], BATCH):
        batch = run.task.prompts([rows[i] for i in chosen])
        chunks.append([on_host(one) for one in read_all(parsed, run.task.body, len(run.recipe.experts), batch)])
        order += chosen
        report.row({"step": len(order)})
    back = torch.tensor(order).argsort()
    return [picked(joined([chunk[i] for chunk in chunks]), back) for i in range(len(parsed))]
