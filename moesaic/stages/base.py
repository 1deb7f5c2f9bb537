"""The base as a part of a run: a tokenizer and a decoder trained from nothing.

Knows nothing about experts but their texts, which the base may be trained on.
"""

import math
from functools import cached_property, partial
from typing import Any

import torch

from moesaic.artefacts.base import save_base
from moesaic.config import sized
from moesaic.data.batches import Held, Packed, encode_all
from moesaic.data.rows import Example, text_of
from moesaic.data.splits import take
from moesaic.errors import MoesaicError, RecipeError
from moesaic.kinds.gates import plain
from moesaic.model.decoder import Decoder, initialise
from moesaic.recipe import NewBase
from moesaic.runs.checkpoints import drop_logs, training, trial_at
from moesaic.runs.directory import RunDir
from moesaic.runs.jobs import Cache, Report, threads
from moesaic.runs.part import Part
from moesaic.tasks import Run
from moesaic.tasks.texts import TextTask
from moesaic.tokenizer import Tokenizer
from moesaic.train.execution import arrange, type_of
from moesaic.train.language import loss_of, mean_nats
from moesaic.train.loop import fit
from moesaic.train.ranks import agreed, spread, threads_each, world_size

ROWS = TextTask.chosen_by
"""The largest number of a domain's rows that the base is validated on."""


class BasePart(Part):
    """A base that is pretrained in the run."""

    run: RunDir
    name, stage = "base", "pretrain"

    def __init__(self, run: Run, spec: NewBase):
        super().__init__(run.dir, run.dir.base_at)
        self.source, self.spec = run, spec

    @cached_property
    def corpus(self) -> tuple[list[Example], list[Example], str]:
        return corpus(self.source, self.spec)

    def inputs(self) -> dict[str, Any]:
        return {"base": self.spec.model_dump(mode="json"), "data": self.corpus[2]}

    def settings(self) -> dict[str, Any]:
        return {**self.inputs(), "workers": self.run.recipe.workers}  # the number of threads decides the order of sums

    def missing(self) -> MoesaicError:
        return RecipeError("there is no base yet", path=self.at, hint="make it first: moesaic pretrain RECIPE")

    def make(self, report: Report) -> None:
        """Train and publish, with the other processes of `torchrun` if there are any."""
        agreed(lambda: True)  # see help_to_make
        self.train(report)

    def train(self, report: Report) -> None:
        """Train with as many threads as there will be trainings side by side; the main process publishes."""
        recipe, spec, settings = self.run.recipe, self.spec, self.spec.pretrain
        (train, validation, source) = self.corpus
        tokenizer = Tokenizer.train((text_of(example) for example in train), spec.vocab_size)
        decoder = Decoder(sized(spec.size, spec.vocab_size))
        initialise(decoder, torch.Generator().manual_seed(recipe.seed))
        if isinstance(settings.lr, list):
            raise RecipeError("a base is pretrained once", field="base.pretrain.lr", expected="one number")
        if settings.length > decoder.config.context:
            what, field, most = (
                "rows longer than the context of the base",
                "base.pretrain.length",
                decoder.config.context,
            )
            raise RecipeError(what, field=field, expected=f"<= {most}", got=settings.length)
        rows, _ = encode_all(train, tokenizer, 1 << 30, recipe.router.prompt_tokens)
        chosen_by = take(validation, ROWS)
        held_out, cut = encode_all(chosen_by, tokenizer, settings.length, recipe.router.prompt_tokens)
        if settings.accumulate % (world := world_size()):
            what, field = "each process takes as many batches of a step as the others", "base.pretrain.accumulate"
            expected = f"a multiple of {world}, the number of processes"
            raise RecipeError(what, field=field, expected=expected, got=settings.accumulate)
        packed = Packed(Held(rows), settings.length, settings.batch, recipe.seed, settings.apart)
        report.begin(settings.steps)
        trial = trial_at(settings.lr)
        model, ranks = spread(arrange(decoder, settings), sharded=settings.parallel == "fsdp")
        if ranks.main:
            drop_logs(self.run, self.at, [trial])
        each = threads_each(recipe.workers)
        with threads(each), training(self.run, self.at, trial, self.settings(), report) as (keeper, record):
            parameters, loss = dict(decoder.named_parameters()), loss_of(model, plain, type_of(settings.dtype))
            validate = partial(mean_nats, model, plain, held_out, settings.batch, score_prompt=True)
            shared = settings, settings.lr, record, recipe.seed, keeper, packed.names, ranks
            trained = fit(parameters, packed, loss, validate, *shared)
        if not ranks.main:
            return
        decoder = Decoder(decoder.config)  # the trained one may hold pieces
        decoder.load_state_dict(trained.state, strict=False)
        facts = {
            "stage_key": self.key,
            "data": source,
            "seed": recipe.seed,
            "metrics": {
                "validation_nats": trained.best,
                "perplexity": math.exp(trained.best),
                "step": trained.best_step,
            },
            "rows": {"train": len(rows), "validation": len(held_out), "truncated": cut},  # packed rows are never cut
            "tokens_seen": trained.steps * packed.batch * settings.length * settings.accumulate,
            "timing": {"seconds": round(trained.seconds, 2)},
            "logs": self.run.logged(self.at),
        }
        size = sum(p.numel() * p.element_size() for p in decoder.parameters())
        self.run.publish(self.at, lambda folder: save_base(folder, decoder, tokenizer, facts), size)
        self.run.forget(self.at)
        report.end(f"validation {trained.best:.3f} nats a token")


def help_to_make(run: Run) -> None:
    """Train the base with the main process as often as that one makes it; nothing is reported or published here."""
    while agreed(lambda: False) and run.recipe.base.new:
        BasePart(run, run.recipe.base.new).train(Report("base", lambda *message: None, Cache()))


def corpus(run: Run, spec: NewBase) -> tuple[list[Example], list[Example], str]:
    """Training and validation text of a base, and the hash of its sources."""
    domains, source = run.materials.domains.values(), spec.pretrain.data
    if source == "experts":
        train = [example for domain in domains for example in longest(domain.train)]
        validation = [example for domain in domains for example in take(domain.validation, ROWS)]
        return train, validation, run.dir.key("corpus", domains=[domain.digest for domain in domains])
    judged = {e.group for domain in domains for e in domain.test} | {e.group for e in run.materials.unseen}
    texts = [e for e in run.materials.texts(source) if e.group not in judged]
    held_out = take(texts, max(1, min(ROWS, len(texts) // 10)))
    groups = {example.group for example in held_out}
    train = [example for example in texts if example.group not in groups]
    return train, held_out, run.dir.key("corpus", texts=[example.told for example in texts])


def longest(examples: list[Example]) -> list[Example]:
    """One example of each group: the last turn of a conversation, whose prompt holds all earlier turns."""
    found: dict[str, Example] = {}
    for example in examples:
        kept = found.setdefault(example.group, example)
        if len(text_of(example)) > len(text_of(kept)):
            found[example.group] = example
    return list(found.values())
