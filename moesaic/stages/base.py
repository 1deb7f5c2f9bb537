"""The base as a part of a run: a tokenizer and a decoder trained from nothing.

Knows nothing about experts but their texts, which the base may be trained on.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import groupby
from typing import Any

import torch

from moesaic.artefacts.base import save_base
from moesaic.config import sized
from moesaic.data.batches import Documents, Held, Packed, Tokens, encode_all
from moesaic.data.rows import Example, text_of
from moesaic.data.splits import take
from moesaic.data.stored_rows import without
from moesaic.data.stored_tokens import together
from moesaic.data.token_shards import Shards
from moesaic.errors import DataError, MoesaicError, RecipeError
from moesaic.hardware import CPU
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
from moesaic.train.execution import arrange, compile_layers
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
    def corpus(self) -> "Corpus":
        return corpus(self.source, self.spec)

    def inputs(self) -> dict[str, Any]:
        own = {"base": self.spec.model_dump(mode="json"), "data": self.corpus.key}
        return {**own, **self.source.models.compute.key}

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
        if settings.accumulate % (world := world_size()):
            what, field = "each process takes as many batches of a step as the others", "base.pretrain.accumulate"
            expected = f"a multiple of {world}, the number of processes"
            raise RecipeError(what, field=field, expected=expected, got=settings.accumulate)
        compute = self.source.models.compute
        if world > 1 and compute.device.type != CPU:
            what, hint = "processes of torchrun train on the CPU", "pretrain on a card in one process"
            raise RecipeError(what, field="device", expected=CPU, got=str(compute.device), hint=hint)
        read = self.corpus.read()
        packed = Packed(read.documents, settings.length, settings.batch, recipe.seed, settings.apart)
        micro_batches = settings.steps * settings.accumulate
        report.note(f"{packed.tokens:,} unique tokens to learn from, read {packed.epochs(micro_batches):.2f} times")
        report.begin(settings.steps)
        trial = trial_at(settings.lr)
        decoder.to(compute.device)
        arrange(decoder, settings)
        compile_layers(decoder, settings)
        model, ranks = spread(decoder, settings.parallel)
        if ranks.main:
            drop_logs(self.run, self.at, [trial])
        each = threads_each(recipe.workers)
        with threads(each), training(self.run, self.at, trial, self.settings(), report) as (keeper, record):
            parameters, loss = dict(decoder.named_parameters()), loss_of(model, plain, compute.dtype)
            held_out, batch = read.held_out, settings.batch
            validate = partial(mean_nats, model, plain, held_out, batch, score_prompt=True, compute=compute)
            shared = settings, settings.lr, record, recipe.seed, keeper, packed.names, ranks
            batches, scaled = lambda step: packed(step).on(compute.device), compute.dtype == torch.float16
            trained = fit(parameters, batches, loss, validate, *shared, scaled=scaled)
        if not ranks.main:
            return
        decoder = Decoder(decoder.config)  # the trained one may hold pieces
        decoder.load_state_dict(trained.state, strict=False)
        facts = {
            "stage_key": self.key,
            "data": self.corpus.key,
            "seed": recipe.seed,
            "metrics": {
                "validation_nats": trained.best,
                "perplexity": math.exp(trained.best),
                "step": trained.best_step,
            },
            "rows": {
                "train": len(read.documents.lengths),
                "validation": len(read.held_out),
                "truncated": read.cut,  # packed rows are never cut
            },
            "tokens": packed.tokens,
            "tokens_seen": trained.steps * packed.batch * settings.length * settings.accumulate,
            "epochs": round(packed.epochs(trained.steps * settings.accumulate), 4),
            "timing": {"seconds": round(trained.seconds, 2)},
            "logs": self.run.logged(self.at),
        }
        size = sum(p.numel() * p.element_size() for p in decoder.parameters())
        self.run.publish(self.at, lambda folder: save_base(folder, decoder, read.tokenizer, facts), size)
        self.run.forget(self.at)
        report.end(f"validation {trained.best:.3f} nats a token")


def help_to_make(run: Run) -> None:
    """Train the base with the main process as often as that one makes it; nothing is reported or published here."""
    while agreed(lambda: False) and run.recipe.base.new:
        BasePart(run, run.recipe.base.new).train(Report("base", lambda *message: None, Cache()))


@dataclass(frozen=True)
class Encoded:
    """Texts to train on, and rows to validate on, `cut` of which lost their ends."""

    tokenizer: Tokenizer
    documents: Documents
    held_out: list[Tokens]
    cut: int


@dataclass(frozen=True)
class Corpus:
    """The text of a base: a hash of it, and the function that encodes it."""

    key: str
    read: Callable[[], Encoded]


def corpus(run: Run, spec: NewBase) -> Corpus:
    """The text of a base: that of the experts, of files, or of shards. Nothing that is judged on is learned from."""
    domains = run.materials.domains.values()
    if spec.pretrain.data == "experts":
        train: Iterable[Example] = Longest([domain.train for domain in domains])
        validation = [example for domain in domains for example in take(domain.validation, ROWS)]
        key = run.dir.key("corpus", domains=[domain.digest for domain in domains])
        return Corpus(key, partial(encoded, run, spec, train, validation))
    judged = {e.group for domain in domains for e in domain.test} | {e.group for e in run.materials.unseen}
    if spec.pretrain.shards:
        return of_shards(run, spec, spec.pretrain.shards, judged)
    texts = without(run.materials.texts(spec.pretrain.sources), judged)
    held_out = take(texts, max(1, min(ROWS, len(texts) // 10)))
    train = without(texts, {example.group for example in held_out})
    key = run.dir.key("corpus", texts=[example.told for example in texts])
    return Corpus(key, partial(encoded, run, spec, train, held_out))


def encoded(run: Run, spec: NewBase, train: Iterable[Example], validation: list[Example]) -> Encoded:
    """Train a tokenizer on the training text, and encode all; only some examples are in memory at a time."""
    tokenizer = Tokenizer.train((text_of(example) for example in train), spec.vocab_size)
    given = run.recipe.router.prompt_tokens
    rows = (row for some in together(train) for row in encode_all(some, tokenizer, 1 << 30, given)[0])
    held_out, cut = encode_all(take(validation, ROWS), tokenizer, spec.pretrain.length, given)
    return Encoded(tokenizer, Held(rows), held_out, cut)


def of_shards(run: Run, spec: NewBase, place: str, judged: set[str]) -> Corpus:
    """The text of a folder of shards, with its own tokenizer."""
    at = run.recipe.resolve(place)
    shards = Shards.open(at)
    if shards.tokenizer.vocab_size > spec.vocab_size:
        what, expected = "smaller than the tokenizer of the shards", f"at least {shards.tokenizer.vocab_size}"
        raise RecipeError(what, field="base.vocab_size", expected=expected, got=spec.vocab_size)
    train, held_out = shards.train.without(judged), shards.unseen.rows(ROWS, spec.pretrain.length)
    if not held_out:
        hint = "write the shards with an unseen share: moesaic tokenize ... --unseen 0.01"
        raise DataError("no text to validate on", path=at, field="base.pretrain.data", hint=hint)
    cut = int((shards.unseen.lengths[: len(held_out)] > spec.pretrain.length).sum())
    key = run.dir.key("corpus", shards=shards.key, texts=len(train.lengths))
    return Corpus(key, lambda: Encoded(shards.tokenizer, train, held_out, cut))


@dataclass(frozen=True)
class Longest:
    """One example of each row: the last turn of a conversation, whose prompt holds all earlier turns."""

    parts: Sequence[Sequence[Example]]

    def __iter__(self) -> Iterator[Example]:
        for part in self.parts:
            for _, row in groupby(part, lambda example: example.group):
                yield max(row, key=lambda example: len(text_of(example)))
