"""Stage 3: the router of the mixture, and those it is compared with, on features read once.

Knows nothing about how experts were trained: a prompt's label is the expert whose text it is, and what the mixture
loses on it is asked of the experts as they stand.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from moesaic.artefacts.router import ENCODER, INFO, StoredRouter, save_router
from moesaic.artefacts.sentence_encoder import KIND as ENCODER_KIND
from moesaic.artefacts.sentence_encoder import StoredEncoder
from moesaic.config import Feature
from moesaic.data.answers import LabelledTokens
from moesaic.data.batches import Tokens
from moesaic.data.rows import Example
from moesaic.data.splits import take
from moesaic.errors import DataError, RecipeError, WeightsError
from moesaic.files import MANIFEST, digest, read_jsonl, read_manifest, write_json
from moesaic.kinds.labels import classifier_of
from moesaic.kinds.mixed import joined as beside_base
from moesaic.kinds.mixed import part_folders, taken_out, version_of
from moesaic.model.classifier import Classifier
from moesaic.model.decoder import Decoder
from moesaic.model.features import Prompts, read_all
from moesaic.routing import States
from moesaic.routing.routers import Features
from moesaic.runs.checkpoints import drop_logs, forget, refuse_changed, training
from moesaic.runs.jobs import Jobs, Report
from moesaic.runs.progress import Progress
from moesaic.runs.workshop import VALIDATION_ROWS, Address, Workshop, at_address, kept
from moesaic.sections.routers import EncoderFeature, FeatureSpec, RouterLoss, RouterSpec
from moesaic.stages.running import running
from moesaic.train.classification import batched, labels
from moesaic.train.routers import Labelled, selection_of, train_router
from moesaic.train.task import Table, Task, Weighed, computed, language

Rows = Sequence[Tokens | LabelledTokens]

BATCH = 32
SPLITS = ("train", "validation")
VALIDATION_PROMPTS = 400  # of each expert: what calibration and the choice of an epoch rest on

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


def specs(workshop: Workshop) -> dict[str, RouterSpec]:
    """All routers to train: the mixture's own as `router`, then those compared; a keyword router always among them."""
    router = workshop.recipe.router
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


def train_routers(workshop: Workshop, progress: Progress, jobs: Jobs) -> None:
    """Train those that are not finished; each split's features are read once for all of them, in parallel."""
    wanted = {name: spec for name, spec in specs(workshop).items() if not done(workshop, name, spec, progress)}
    for name in specs(workshop).keys() - wanted.keys():
        forget(workshop, at(workshop, name))
        progress.note(f"{name}: finished, skipped")
    for name, spec in wanted.items():
        refuse_changed(workshop, at(workshop, name), inputs_of(workshop, spec), progress.warn)
    if not wanted:
        return
    features = list(dict.fromkeys(feature for spec in wanted.values() for feature in spec.reads))
    # No more prompts are read than a feature's hungriest router asks for; each takes the first of them, in hash order.
    asked = {feature: [spec for spec in wanted.values() if feature in spec.reads] for feature in features}
    parts: dict[str, Callable[[Report], Any]] = {
        f"features {split} {expert}": partial(
            read_features,
            workshop.address,
            expert,
            split,
            {feature: max(most_of(spec, split) for spec in some) for feature, some in asked.items()},
        )
        for split in SPLITS
        for expert in workshop.recipe.experts
    }
    if "router" in wanted and workshop.recipe.mixture.level == "token":
        own = wanted["router"]
        parts |= {
            f"running {split} {expert}": partial(
                read_running, workshop.address, expert, split, [str(one) for one in own.reads], most_of(own, split)
            )
            for split in SPLITS
            for expert in workshop.recipe.experts
        }
    read = jobs.run(parts)
    # Where whoever is chosen has all the weight, each expert by itself is all that can be asked: computed once.
    tabled = [spec for spec in wanted.values() if spec.loss.task and spec.certain]
    slopes = any(not spec.untaught for spec in tabled)
    tables: dict[str, Callable[[Report], Any]] = {
        f"losses {split} {expert}": partial(
            tabulate,
            workshop.address,
            versions(workshop),
            expert,
            split,
            max(most_of(spec, split) for spec in tabled),
            slopes and split == "train",
        )
        for split in SPLITS
        for expert in (workshop.recipe.experts if tabled else ())
    }
    read |= jobs.run(tables)
    for name, spec in wanted.items():
        report = Report.here(name if name == "router" else f"router {name}", progress)
        train_and_publish(workshop, name, spec, [features.index(feature) for feature in spec.reads], read, report)


def train_and_publish(
    workshop: Workshop, name: str, spec: RouterSpec, places: list[int], read: dict[str, Any], report: Report
) -> None:
    """Train one router on features that were read, those at `places` of each part, and publish it with its record."""
    names = tuple(workshop.recipe.experts)
    place = places[0]

    def labelled(split: str) -> Labelled:
        if name == "router" and workshop.recipe.mixture.level == "token":
            found = [read[f"running {split} {expert}"] for expert in names]
            owners = torch.arange(len(names)).repeat_interleave(torch.tensor([len(one[0]) for one in found]))
            first, last = (torch.cat([one[at] for one in found]) for at in (0, -1))
            return Labelled(first, owners, last)
        limit = most_of(spec, split)
        features, beside = (
            joined([read[f"features {split} {expert}"].features[at][:limit] for expert in names])
            for at in (place, places[-1])
        )
        sizes = [len(read[f"features {split} {expert}"].features[place][:limit]) for expert in names]
        labels = torch.repeat_interleave(torch.arange(len(names)), torch.tensor(sizes))
        means = beside.mean() if isinstance(beside, States) else beside if isinstance(beside, torch.Tensor) else None
        return Labelled(features, labels, means, task(split, limit))

    def task(split: str, limit: int) -> Task | None:
        if not spec.loss.task:
            return None
        if spec.certain:
            return Table.cat([read[f"losses {split} {expert}"][:limit] for expert in names])
        rows = [row for expert in names for row in rows_of(workshop, expert, split, limit)]
        return computed(lost(workshop.address, versions(workshop), rows))

    train, validation = labelled("train"), labelled("validation")
    words = {i: e.keywords for i, e in enumerate(workshop.recipe.experts.values()) if e.keywords}
    report.begin(spec.epochs * -(-len(train.labels) // spec.batch))
    part, seed = at(workshop, name), workshop.recipe.seed
    drop_logs(workshop, part, [spec.lr])
    if spec.untaught:
        report.warn(UNTAUGHT)
    with training(workshop, part, spec.lr, inputs_of(workshop, spec), report) as (keeper, record):
        router, metrics = train_router(spec, train, validation, words, len(names), seed, record, keeper)
    log = [row for _, row in read_jsonl(keeper.log_at)] if keeper.log_at.is_file() else []
    curve = [{key: row[key] for key in ("step", "loss", "lr", "score")} for row in log if "score" in row]
    encoder = None if isinstance(spec.feature, str) else workshop.encoder(spec.feature)
    stored = StoredRouter(
        router,
        spec.kind,
        names,
        str(spec.feature),
        selection_of(spec),
        {},
        encoder,
    )
    facts = {
        "stage_key": key_of(workshop, spec),
        "prompt_tokens": workshop.recipe.router.prompt_tokens,
        "seed": workshop.recipe.seed,
        "metrics": {f"validation_{key}": value for key, value in metrics.items()},
        **({"task_gradient": not spec.untaught} if spec.loss.task else {}),
        **workshop.foundation.told,
    }
    if isinstance(spec.feature, EncoderFeature) and (origin := workshop.located(spec.feature.model).origin):
        facts["encoder_origin"] = origin
    info = {
        "router": spec.model_dump(mode="json"),
        "examples": {n: int((train.labels == i).sum()) for i, n in enumerate(names)},
        "validation_examples": len(validation.labels),
        "validation": metrics,
        "curve": curve,
    }
    sizes = [*router.state_dict().values()]
    encoder_at = standing_encoder(workshop, encoder) if encoder else None
    if encoder:
        cut = {split: sum(read[f"features {split} {n}"].truncated[place] for n in names) for split in SPLITS}
        info["truncated"] = cut  # texts of which the encoder reads the beginning only
        sizes += [] if encoder_at else encoder.sentences.state_dict().values()

    def write(folder: Any) -> None:
        write_json(folder / INFO, info)
        save_router(folder, stored, workshop.base_fingerprint, facts, encoder_at)

    workshop.publish(part, write, sum(t.numel() * t.element_size() for t in sizes))
    forget(workshop, part)
    told = f", loss of the task {metrics['task']:.3f}" if spec.loss.task else ""
    report.end(f"validation macro-F1 {metrics['macro_f1']:.3f}, accuracy {metrics['accuracy']:.3f}{told}")


def standing_encoder(workshop: Workshop, wanted: StoredEncoder) -> Path | None:
    """Where the run holds an encoder already, found sound: in the folder of a router that reads it."""
    for router in [at(workshop, name) for name in specs(workshop)]:
        folder = router / ENCODER
        try:
            found = read_manifest(folder, ENCODER_KIND) if (folder / MANIFEST).is_file() else {}
        except WeightsError:
            continue  # whoever reads that router says what is damaged
        if found.get("fingerprint") == wanted.fingerprint:
            return folder
    return None


def done(workshop: Workshop, name: str, spec: RouterSpec, progress: Progress) -> bool:
    return workshop.finished(at(workshop, name), key_of(workshop, spec), progress)


def at(workshop: Workshop, name: str) -> Path:
    """Where a router lies: the mixture's own, or one that is only compared."""
    return workshop.router_at if name == "router" else workshop.rival_at(name)


def key_of(workshop: Workshop, spec: RouterSpec) -> str:
    return workshop.key("router", **inputs_of(workshop, spec))


def inputs_of(workshop: Workshop, spec: RouterSpec) -> dict[str, Any]:
    """All that a router's training depends on, as plain data."""
    recipe = workshop.recipe
    texts = [[e.prompt, e.response] for n in recipe.experts for s in SPLITS for e in prompts_of(workshop, n, s)]
    feature = spec.feature if isinstance(spec.feature, str) else {"encoder": workshop.encoder(spec.feature).fingerprint}
    parts = {"parts": dict(versions(workshop))} if spec.loss.task else {}
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
        "base": workshop.base_fingerprint,
    }


def prompts_of(workshop: Workshop, expert: str, split: str) -> list[Example]:
    """The texts whose prompts stand for an expert: of its data, or the examples given for one trained elsewhere.

    Of examples, one in five is held out.
    """
    spec = workshop.recipe.experts[expert]
    if spec.data:
        return getattr(workshop.domains[expert], split)
    given = take(workshop.texts(spec.examples or []), sys.maxsize)
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
    return VALIDATION_ROWS if spec.loss.task and not spec.certain else VALIDATION_PROMPTS


def rows_of(workshop: Workshop, expert: str, split: str, most: int) -> Rows:
    """The prompts of an expert's split with their responses or labels, in hash order so that a limit is unbiased."""
    examples, length = take(prompts_of(workshop, expert, split), most), workshop.recipe.train.length
    if workshop.recipe.labelled:
        return workshop.labelled(examples, length, expert)
    return workshop.encoded(examples, length)


# what the mixture loses


def versions(workshop: Workshop) -> tuple[tuple[str, str], ...]:
    """The experts by name, and what each is: those trained elsewhere by their weights."""
    found = []
    for name, folder in part_folders(workshop).items():
        made_here = name in workshop.trained_experts() or taken_out(workshop, name)
        if made_here and not (folder / MANIFEST).is_file():
            what = f"there is no expert '{name}' yet, and loss.task is measured with it"
            raise RecipeError(what, path=folder, hint=f"train it first: moesaic train-expert RECIPE --expert {name}")
        found.append((name, version_of(workshop, name, folder)))
    return tuple(found)


@kept
def adapted(address: Address, parts: tuple[tuple[str, str], ...]) -> Decoder:
    """The base with those experts beside it, all of it frozen; kept between pieces of work."""
    workshop = at_address(*address)
    folders = part_folders(workshop)
    return beside_base(workshop, {name: folders[name] for name, _ in parts}).requires_grad_(False)


@kept
def classifying(address: Address, parts: tuple[tuple[str, str], ...]) -> Classifier:
    """The same for experts that classify, with their heads."""
    workshop = at_address(*address)
    folders = part_folders(workshop)
    return classifier_of(workshop, {name: folders[name] for name, _ in parts})


def lost(address: Address, parts: tuple[tuple[str, str], ...], rows: Rows) -> Weighed:
    """What the mixture of those experts loses on rows: the nats of responses, or of labels."""
    written = [row for row in rows if isinstance(row, Tokens)]
    if written:
        return language(adapted(address, parts), written)
    answered = [row for row in rows if isinstance(row, LabelledTokens)]
    return labels(classifying(address, parts), answered, at_address(*address).backbone.pad)


def tabulate(
    address: Address,
    parts: tuple[tuple[str, str], ...],
    expert: str,
    split: str,
    most: int,
    slopes: bool,
    report: Report,
) -> Table:
    """What each expert alone loses on the responses of one expert's split, in the order of `rows_of`."""
    rows = rows_of(at_address(*address), expert, split, most)
    report.begin(len(rows) * len(parts))
    found = Table.of(lost(address, parts, rows), len(rows), len(parts), slopes, lambda n: report.row({"step": n}))
    report.end("computed")
    return found


class Read(NamedTuple):
    """Each feature of some prompts, and of how many prompts that feature is of the beginning only."""

    features: list[Features]
    truncated: list[int]


def read_features(address: Address, expert: str, split: str, most: dict[FeatureSpec, int], report: Report) -> Read:
    """Each feature of so many prompts of one expert's split, in the order of `rows_of`."""
    workshop = at_address(*address)
    rows = rows_of(workshop, expert, split, max(most.values()))
    found: dict[FeatureSpec, Features] = {}
    cut: dict[FeatureSpec, int] = {}
    for limit in sorted(set(most.values())):
        some = [feature for feature in most if most[feature] == limit]
        found |= zip(some, features_of(workshop, rows[:limit], some, report), strict=True)
        texts = texts_of(workshop, rows[:limit])
        encoders = [None if isinstance(feature, str) else workshop.encoder(feature) for feature in some]
        cut |= zip(some, (one.sentences.truncated(texts) if one else 0 for one in encoders), strict=True)
    report.end(f"read; {max(cut.values())} texts are longer than the encoder reads" if any(cut.values()) else "read")
    return Read([found[feature] for feature in most], [cut[feature] for feature in most])


def read_running(
    address: Address, expert: str, split: str, features: list[str], most: int, report: Report
) -> list[torch.Tensor]:
    """The same where decisions are made before every token: each feature, before some tokens of each response."""
    workshop = at_address(*address)
    rows = [row for row in rows_of(workshop, expert, split, most) if isinstance(row, Tokens)]
    report.begin(1)
    found = [running(Feature.parse(feature), workshop.base.decoder, rows) for feature in features]
    report.end(f"{len(found[0])} tokens")
    return found


@torch.no_grad()
def features_of(workshop: Workshop, rows: Rows, features: list[FeatureSpec], report: Report) -> list[Features]:
    """Features of rows in their order: those of the base from one pass of it, each encoder's from one of its own."""
    of_base = [feature for feature in features if isinstance(feature, str)]
    encoders = [feature for feature in features if not isinstance(feature, str)]
    report.begin(len(rows) * (bool(of_base) + len(encoders)))
    found: dict[FeatureSpec, Features] = {}
    if of_base:
        found |= zip(of_base, states_of(workshop, rows, of_base, report), strict=True)
    for place, feature in enumerate(encoders, bool(of_base)):
        found[feature] = sentences_of(workshop, rows, feature, len(rows) * place, report)
    return [found[feature] for feature in features]


def sentences_of(
    workshop: Workshop, rows: Rows, feature: EncoderFeature, reported: int, report: Report
) -> torch.Tensor:
    """The encoder's vector of each row's prompt; a text that comes again is not computed again."""
    texts, sentences = texts_of(workshop, rows), workshop.encoder(feature).sentences
    once = sorted(set(texts), key=lambda text: (len(text), text))
    known: dict[str, torch.Tensor] = {}
    for start in range(0, len(once), BATCH):
        some = once[start : start + BATCH]
        known |= zip(some, sentences(some), strict=True)
        report.row({"step": reported + len(known)})
    return torch.stack([known[text] for text in texts])


def states_of(workshop: Workshop, rows: Rows, features: list[str], report: Report) -> list[Features]:
    """What the base makes of rows, in their order, computed in batches of like length."""
    parsed, body = [Feature.parse(feature) for feature in features], workshop.body
    order = sorted(range(len(rows)), key=lambda i: rows[i].prompt)
    chunks: list[list[Features]] = []
    for start in range(0, len(order), BATCH):
        batch = prompts(workshop, [rows[i] for i in order[start : start + BATCH]])
        chunks.append(read_all(parsed, body, len(workshop.recipe.experts), batch))
        report.row({"step": start + len(batch.texts)})
    back = torch.tensor(order).argsort()

    def in_order(features: Features) -> Features:
        return [features[place] for place in back] if isinstance(features, list) else features[back]

    return [in_order(joined([chunk[i] for chunk in chunks])) for i in range(len(parsed))]


def joined(parts: list[Features]) -> Features:
    """One feature of several batches of prompts, as of one."""
    states = [part for part in parts if isinstance(part, States)]
    vectors = [part for part in parts if isinstance(part, torch.Tensor)]
    if states:
        return States.cat(states)
    return torch.cat(vectors) if vectors else [text for part in parts if isinstance(part, list) for text in part]


def prompts(workshop: Workshop, rows: Rows) -> Prompts:
    """The prompts of rows, as a router reads them."""
    if workshop.recipe.labelled:
        return batched([row for row in rows if isinstance(row, LabelledTokens)], workshop.backbone.pad)
    return Prompts.pad([row.ids[: row.prompt] for row in rows], texts_of(workshop, rows))


def texts_of(workshop: Workshop, rows: Rows) -> list[str]:
    """The prompts of rows, as text."""
    return [
        row.text if isinstance(row, LabelledTokens) else workshop.base.tokenizer.decode(row.ids[: row.prompt])
        for row in rows
    ]
