"""Stage 3: the router of the mixture, and those it is compared with, on features read once.

Knows nothing about how experts were trained: a prompt's label is the expert whose text it is.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from moesaic.config import Feature
from moesaic.data.batches import Tokens
from moesaic.data.rows import Example
from moesaic.data.splits import take
from moesaic.errors import DataError
from moesaic.files import digest, read_jsonl, write_json
from moesaic.model.features import Prompts, read_all
from moesaic.recipe import EncoderFeature, RouterSpec
from moesaic.recipe.routers import FeatureSpec
from moesaic.routing import Selection
from moesaic.stages.jobs import Jobs, Report
from moesaic.stages.progress import Progress
from moesaic.stages.training import drop_logs, forget, refuse_changed, training
from moesaic.stages.workshop import Address, Workshop, at_address
from moesaic.train.routers import Labelled, train_router
from moesaic.weights.router import INFO, StoredRouter, save_router

BATCH = 32
SPLITS = ("train", "validation")
VALIDATION_PROMPTS = 400  # of each expert: what calibration and the choice of an epoch rest on


def label_of(spec: RouterSpec) -> str:
    """The name of a compared router, for folders and tables."""
    few = f"-{spec.examples}" if spec.examples else ""
    kept = f"-{spec.selection}" if spec.selection != "top_1" else ""
    return f"{spec.kind}-{str(spec.feature).replace('@', '_at_')}{few}{kept}"


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
    features = list(dict.fromkeys(spec.feature for spec in wanted.values()))
    # No more prompts are read than the hungriest router asks for; each takes the first of them, in hash order.
    most = max(spec.examples or sys.maxsize for spec in wanted.values())
    parts = {
        f"features {split} {expert}": partial(read_features, workshop.address, expert, split, features, most)
        for split in SPLITS
        for expert in workshop.recipe.experts
    }
    read = jobs.run(parts)
    for name, spec in wanted.items():
        report = Report.here(name if name == "router" else f"router {name}", progress)
        train_and_publish(workshop, name, spec, features.index(spec.feature), read, report)


def train_and_publish(
    workshop: Workshop, name: str, spec: RouterSpec, place: int, read: dict[str, "Read"], report: Report
) -> None:
    """Train one router on features that were read, those at `place` of each part, and publish it with its record."""
    names = tuple(workshop.recipe.experts)

    def labelled(split: str, limit: int | None) -> Labelled:
        parts: list[Any] = [read[f"features {split} {expert}"].features[place][:limit] for expert in names]
        labels = torch.cat([torch.full((len(part),), label) for label, part in enumerate(parts)])
        texts = spec.feature == "text"
        return Labelled([text for part in parts for text in part] if texts else torch.cat(parts), labels)

    train, validation = labelled("train", spec.examples), labelled("validation", None)
    words = {i: e.keywords for i, e in enumerate(workshop.recipe.experts.values()) if e.keywords}
    report.begin(spec.epochs * -(-len(train.labels) // spec.batch))
    part, seed = at(workshop, name), workshop.recipe.seed
    drop_logs(workshop, part, [spec.lr])
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
        Selection(kind=spec.selection, k=spec.k, renormalise=spec.renormalise),
        {},
        encoder,
    )
    facts = {
        "stage_key": key_of(workshop, spec),
        "prompt_tokens": workshop.recipe.router.prompt_tokens,
        "seed": workshop.recipe.seed,
        "metrics": {f"validation_{key}": value for key, value in metrics.items()},
    }
    info = {
        "router": spec.model_dump(mode="json"),
        "examples": {n: int((train.labels == i).sum()) for i, n in enumerate(names)},
        "validation_examples": len(validation.labels),
        "validation": metrics,
        "curve": curve,
    }
    sizes = [*router.state_dict().values()]
    if encoder:
        cut = {split: sum(read[f"features {split} {n}"].truncated[place] for n in names) for split in SPLITS}
        info["truncated"] = cut  # texts of which the encoder reads the beginning only
        sizes += encoder.sentences.state_dict().values()

    def write(folder: Any) -> None:
        write_json(folder / INFO, info)
        save_router(folder, stored, workshop.base_fingerprint, facts)

    workshop.publish(part, write, sum(t.numel() * t.element_size() for t in sizes))
    forget(workshop, part)
    report.end(f"validation macro-F1 {metrics['macro_f1']:.3f}, accuracy {metrics['accuracy']:.3f}")


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
    return {
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


class Read(NamedTuple):
    """Each feature of some prompts, and of how many prompts that feature is of the beginning only."""

    features: list[torch.Tensor | list[str]]
    truncated: list[int]


def read_features(
    address: Address, expert: str, split: str, features: list[FeatureSpec], most: int, report: Report
) -> Read:
    """Each feature of the prompts of one expert's split, in the hash order of the texts so that a limit is unbiased."""
    workshop = at_address(*address)
    examples = take(prompts_of(workshop, expert, split), most if split == "train" else VALIDATION_PROMPTS)
    rows = workshop.encoded(examples, workshop.recipe.train.length)
    found = features_of(workshop, rows, features, report)
    texts = texts_of(workshop, rows)
    encoders = [None if isinstance(feature, str) else workshop.encoder(feature) for feature in features]
    cut = [encoder.sentences.truncated(texts) if encoder else 0 for encoder in encoders]
    report.end(f"read; {max(cut)} texts are longer than the encoder reads" if any(cut) else "read")
    return Read(found, cut)


@torch.no_grad()
def features_of(
    workshop: Workshop, rows: list[Tokens], features: list[FeatureSpec], report: Report
) -> list[torch.Tensor | list[str]]:
    """Features of rows in their order: those of the base from one pass of it, each encoder's from one of its own."""
    of_base = [feature for feature in features if isinstance(feature, str)]
    encoders = [feature for feature in features if not isinstance(feature, str)]
    report.begin(len(rows) * (bool(of_base) + len(encoders)))
    found: dict[FeatureSpec, torch.Tensor | list[str]] = {}
    if of_base:
        found |= zip(of_base, states_of(workshop, rows, of_base, report), strict=True)
    for place, feature in enumerate(encoders, bool(of_base)):
        found[feature] = sentences_of(workshop, rows, feature, len(rows) * place, report)
    return [found[feature] for feature in features]


def sentences_of(
    workshop: Workshop, rows: list[Tokens], feature: EncoderFeature, reported: int, report: Report
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


def states_of(
    workshop: Workshop, rows: list[Tokens], features: list[str], report: Report
) -> list[torch.Tensor | list[str]]:
    """What the base makes of rows, in their order, computed in batches of like length."""
    parsed, base = [Feature.parse(feature) for feature in features], workshop.base
    order = sorted(range(len(rows)), key=lambda i: rows[i].prompt)
    chunks: list[list[torch.Tensor | list[str]]] = []
    for start in range(0, len(order), BATCH):
        batch = prompts(workshop, [rows[i] for i in order[start : start + BATCH]])
        chunks.append(read_all(parsed, base.decoder, len(workshop.recipe.experts), batch))
        report.row({"step": start + len(batch.texts)})
    back = torch.tensor(order).argsort()

    def joined(parts: list[torch.Tensor | list[str]]) -> torch.Tensor | list[str]:
        states = [part for part in parts if isinstance(part, torch.Tensor)]
        if states:
            return torch.cat(states)[back]
        texts = [text for part in parts for text in part]
        return [str(texts[place]) for place in back]

    return [joined([chunk[i] for chunk in chunks]) for i in range(len(parsed))]


def prompts(workshop: Workshop, rows: list[Tokens]) -> Prompts:
    """The prompts of rows, as a router reads them."""
    return Prompts.pad([row.ids[: row.prompt] for row in rows], texts_of(workshop, rows))


def texts_of(workshop: Workshop, rows: list[Tokens]) -> list[str]:
    """The prompts of rows, as text."""
    return [workshop.base.tokenizer.decode(row.ids[: row.prompt]) for row in rows]
