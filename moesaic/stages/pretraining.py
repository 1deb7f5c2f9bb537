"""Stage 1: the base. Train a tokenizer and a decoder from nothing, or take the base that the recipe names.

Knows nothing about experts but that their texts may be what the base is trained on.
"""

import math
from pathlib import Path
from typing import Any

import torch

from moesaic.artefacts.base import save_base
from moesaic.config import sized
from moesaic.data.batches import Packed, encode_all
from moesaic.data.rows import Example
from moesaic.data.splits import take
from moesaic.errors import RecipeError
from moesaic.model.decoder import Decoder, initialise
from moesaic.recipe import ExistingBase, NewBase
from moesaic.runs.checkpoints import drop_logs, forget, refuse_changed, training
from moesaic.runs.jobs import Report, threads
from moesaic.runs.progress import Progress
from moesaic.runs.workshop import VALIDATION_ROWS, Workshop
from moesaic.tokenizer import Tokenizer
from moesaic.train.language import loss_of, mean_nats, plain
from moesaic.train.loop import fit


def pretrain(workshop: Workshop, progress: Progress) -> Path:
    """Make the base of the recipe, unless it stands; the folder it lies in."""
    recipe = workshop.recipe
    if isinstance(recipe.base, ExistingBase):
        at = workshop.located(recipe.base.path)
        commit = f", commit {at.commit[:12]}" if at.commit else ""
        progress.note(f"base: {at.place or at.folder}{commit} ({workshop.base_fingerprint[:12]}), as it is")
        return workshop.base_at
    train, validation, source = corpus(workshop, recipe.base)
    inputs: dict[str, Any] = {"base": recipe.base.model_dump(mode="json"), "data": source}
    key = workshop.key("pretrain", **inputs)
    if workshop.finished(workshop.base_at, key, progress):
        forget(workshop, workshop.base_at)
        progress.note("base: finished, skipped")
        return workshop.base_at
    inputs["workers"] = recipe.workers  # other numbers of threads add up in other orders
    refuse_changed(workshop, workshop.base_at, inputs, progress.warn)
    report = Report.here("base", progress)
    tokenizer = Tokenizer.train((text_of(example) for example in train), recipe.base.vocab_size)
    decoder = Decoder(sized(recipe.base.size, recipe.base.vocab_size))
    initialise(decoder, torch.Generator().manual_seed(recipe.seed))
    settings = recipe.base.pretrain
    if isinstance(settings.lr, list):
        raise RecipeError("a base is pretrained once", field="base.pretrain.lr", expected="one number")
    if settings.length > decoder.config.context:
        raise RecipeError(
            "rows longer than the context of the base",
            field="base.pretrain.length",
            expected=f"<= {decoder.config.context}",
            got=settings.length,
        )
    rows, _ = encode_all(train, tokenizer, 1 << 30, recipe.router.prompt_tokens)
    chosen_by = take(validation, VALIDATION_ROWS)
    held_out, cut = encode_all(chosen_by, tokenizer, settings.length, recipe.router.prompt_tokens)
    packed = Packed(rows, settings.length, settings.batch, recipe.seed)
    report.begin(settings.steps)
    drop_logs(workshop, workshop.base_at, [settings.lr])
    with (
        threads(recipe.workers),  # as many as there will be trainings side by side
        training(workshop, workshop.base_at, settings.lr, inputs, report) as (keeper, record),
    ):
        trained = fit(
            dict(decoder.named_parameters()),
            packed,
            loss_of(decoder, plain),
            lambda: mean_nats(decoder, plain, held_out, settings.batch, score_prompt=True),
            settings,
            settings.lr,
            record,
            recipe.seed,
            keeper,
            packed.names,
        )
    decoder.load_state_dict(trained.state, strict=False)
    facts = {
        "stage_key": key,
        "data": source,
        "seed": recipe.seed,
        "metrics": {"validation_nats": trained.best, "perplexity": math.exp(trained.best), "step": trained.best_step},
        "rows": {"train": len(rows), "validation": len(held_out), "truncated": cut},  # packed rows are never cut
        "tokens_seen": trained.steps * packed.batch * settings.length * settings.accumulate,
        "timing": {"seconds": round(trained.seconds, 2)},
    }
    size = sum(p.numel() * p.element_size() for p in decoder.parameters())
    workshop.publish(workshop.base_at, lambda folder: save_base(folder, decoder, tokenizer, facts), size)
    forget(workshop, workshop.base_at)
    report.end(f"validation {trained.best:.3f} nats a token")
    return workshop.base_at


def corpus(workshop: Workshop, base: NewBase) -> tuple[list[Example], list[Example], str]:
    """Training and validation text of a base, and the hash of where it comes from."""
    if base.pretrain.data == "experts":
        domains = workshop.domains
        train = [example for domain in domains.values() for example in longest(domain.train)]
        validation = [example for domain in domains.values() for example in take(domain.validation, VALIDATION_ROWS)]
        return train, validation, workshop.key("corpus", domains=[domain.digest for domain in domains.values()])
    judged = {e.group for domain in workshop.domains.values() for e in domain.test} | {e.group for e in workshop.unseen}
    texts = [e for e in workshop.texts(base.pretrain.data) if e.group not in judged]
    held_out = take(texts, max(1, min(VALIDATION_ROWS, len(texts) // 10)))
    groups = {example.group for example in held_out}
    train = [example for example in texts if example.group not in groups]
    return train, held_out, workshop.key("corpus", groups=sorted(example.group for example in texts))


def longest(examples: list[Example]) -> list[Example]:
    """One example of each group: of a conversation the last turn, whose prompt holds all that came before."""
    found: dict[str, Example] = {}
    for example in examples:
        kept = found.setdefault(example.group, example)
        if len(text_of(example)) > len(text_of(kept)):
            found[example.group] = example
    return list(found.values())


def text_of(example: Example) -> str:
    """What an example is, as one text; of a row with a label, what that is of."""
    if example.texts:
        return example.prompt
    return f"{example.prompt}\n{example.response}" if example.prompt else example.response
