"""The task of writing: rows are texts; experts are chosen and judged by the nats of held-out responses.

Knows nothing about labels, nor which parts a run has.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moesaic.artefacts.base import Base
from moesaic.compose.mixture import StoredMixture, load_mixture
from moesaic.data.batches import Batch, Joined, Schedule, Tokens, encode_all, pad
from moesaic.data.cuts import cut_of, told, truncated
from moesaic.data.neutral import neutral
from moesaic.data.rows import Example
from moesaic.data.splits import take
from moesaic.data.stored_rows import on_disk
from moesaic.data.stored_tokens import StoredTokens, encode_into
from moesaic.evaluate.ruling import Cost
from moesaic.evaluate.score import score
from moesaic.evaluate.sparse_layers import layer_utilisation
from moesaic.evaluate.statistics import UNSEEN, Judged
from moesaic.evaluate.tokens import pieces, token_owners
from moesaic.files import MANIFEST, digest
from moesaic.files.manifest import require_types
from moesaic.generate.engine import Engine
from moesaic.generate.request import BASE
from moesaic.generate.sample import Sampling
from moesaic.generate.speed import tokens_per_second
from moesaic.hardware import Compute
from moesaic.kinds.gates import Weights, plain
from moesaic.kinds.kind import Stored
from moesaic.kinds.parameters import asleep, num_parameters
from moesaic.model.decoder import Decoder
from moesaic.model.features import Prompts
from moesaic.model.mixture import Routed
from moesaic.routing import controls
from moesaic.tasks.task import Findings, Made, Objective, Plan, Task, Trainer, even, trainable
from moesaic.tasks.written import latencies, written
from moesaic.train import language
from moesaic.train.execution import arrange
from moesaic.train.mixture_loss import Weighed
from moesaic.train.mixture_loss import language as text_losses
from moesaic.train.tether import LENGTH, Tether

SAMPLE_TOKENS = 48

Learning = tuple[Callable[[int], Any], Callable[[Any], tuple[Tensor, int]]]
"""The batches of a training, and its loss."""


class TextTrainer(Trainer):
    """Trains an expert to write."""

    def __init__(self, task: "TextTask", plan: Plan):
        self.task = task
        self.length = plan.settings.length
        self.train = [task.stored(examples, self.length, name) for name, examples in plan.train.items()]
        self.held_out = task.held_out(plan)

    def rows(self) -> dict[str, Any]:
        counts = {"train": len(self.every), "validation": len(self.held_out)}
        return {**counts, "truncated": truncated(self.every) + truncated(self.held_out), **cut_of(self.every)}

    @property
    def every(self) -> Joined[Tokens]:
        """The training rows of all domains."""
        return Joined(self.train)

    def cuts(self) -> str | None:
        return told("training", self.every, self.length)

    def spelled(self, text: str) -> str | None:
        return self.task.foundation.tokenizer.spelled(text)

    def objective(self, plan: Plan) -> Objective:
        """Minimise the nats of the responses, the rows of small domains repeated."""
        settings, seed = plan.settings, self.task.recipe.seed
        decoder, products = self.task.fresh(self.task.taught(plan.kind)).decoder, self.task.products(plan.kind)
        gates = plan.begin(decoder, seed).gates
        arrange(decoder, settings)
        schedule = Schedule(even(self.train), settings.batch, seed)

        def batch(number: int) -> Batch:
            return pad(schedule(number)).on(products.device)

        learning: Learning = batch, language.loss_of(decoder, gates, products.dtype)
        if settings.tether:
            rows = Schedule(self.task.neutral_rows, settings.batch, seed)
            tether = Tether(decoder, gates, self.task.foundation.decoder, rows, settings.tether, products)
            learning = tether.beside(*learning)
        return Objective(
            trainable(decoder),
            *learning,
            lambda: language.mean_nats(decoder, gates, self.held_out, settings.batch, compute=products),
            schedule.names,
            self.task.compute.dtype == torch.float16,
        )

    def made(self, plan: Plan, state: Mapping[str, Tensor], best: float) -> Made:
        decoder = self.task.fresh(self.task.taught(plan.kind)).decoder
        started = plan.begin(decoder, self.task.recipe.seed)
        decoder.load_state_dict(state, strict=False)
        return Made(started.take(), None, {"validation_nats": best}, f"validation {best:.3f} nats a token")

    def values(self, plan: Plan, folder: Path) -> Mapping[str, Tensor]:
        base = self.task.fresh(self.task.taught(plan.kind))
        decoder, stored = base.decoder, plan.kind.read(folder, base)
        plan.kind.resume(decoder, stored, plan.design)
        return trainable(decoder)


class TextTask(Task[Tokens]):
    """Rows are texts: prompts, and responses that are scored."""

    chosen_by = 100  # enough rows to choose by, few enough not to cost more than the training

    # --- the base

    @property
    def foundation(self) -> Base:
        return self.models.base

    def fresh(self, compute: Compute | None = None) -> Base:
        return self.models.fresh_base(compute or self.compute)

    # --- rows

    def encoded(self, examples: Sequence[Example], length: int, domain: str = "") -> list[Tokens]:
        tokenizer, given = self.foundation.tokenizer, self.recipe.router.prompt_tokens
        return encode_all(examples, tokenizer, length, given, partial(self.watch, domain))[0]

    def stored(self, examples: Sequence[Example], length: int, domain: str) -> Sequence[Tokens]:
        """The rows of all examples of a domain: where these are kept on disk, encoded once and kept beside them."""
        if (rows := on_disk(examples)) is None:
            return self.encoded(examples, length, domain)
        tokenizer, given, watch = (
            self.foundation.tokenizer,
            self.recipe.router.prompt_tokens,
            partial(self.watch, domain),
        )
        key = digest(["tokens", rows.name, tokenizer.identity, length, given])
        folder, facts = self.materials.prepared.folder(
            key, lambda at: encode_into(at, rows, tokenizer, length, given, watch), rows.path.parent
        )
        return StoredTokens(folder, facts, rows)

    def held_out(self, plan: Plan) -> list[Tokens]:
        some = plan.validation.items()
        return [row for name, rows in some for row in self.encoded(rows, plan.settings.length, name)]

    @cached_property
    def neutral_rows(self) -> list[Tokens]:
        """The beginnings of neutral training text, of which all but the first token is scored."""
        tokenizer = self.foundation.tokenizer
        every = [example for some in neutral("train").values() for example in some]
        begun = ((one, tokenizer.begin(one.messages or one.prompt)[: LENGTH + 1]) for one in every)
        return [Tokens(ids, 1, one.group, source=one.source) for one, ids in begun if len(ids) > 1]

    @cached_property
    def test_rows(self) -> dict[str, list[Tokens]]:
        rows, limit = dict(super().test_rows), self.recipe.evaluate.limit
        if self.materials.unseen:
            rows[UNSEEN] = self.encoded(take(self.materials.unseen, limit), self.recipe.train.length, UNSEEN)
        return rows

    def prompts(self, rows: Sequence[Tokens]) -> Prompts:
        return Prompts.pad([row.ids[: row.prompt] for row in rows], self.texts(rows), self.compute.device)

    def texts(self, rows: Sequence[Tokens]) -> list[str]:
        return [self.foundation.tokenizer.decode(row.ids[: row.prompt]) for row in rows]

    # --- experts

    def trainer(self, plan: Plan) -> Trainer:
        return TextTrainer(self, plan)

    def verified(self, plan: Plan, folder: Path, refuse: Callable[[str, str, str], None]) -> dict[str, Any]:
        """The validation nats of an expert, and of the base."""
        rows, batch = self.held_out(plan), plan.settings.batch
        taught, products = self.taught(plan.kind), self.products(plan.kind)
        base = self.foundation if taught == self.compute else self.fresh(taught)
        expert = plan.kind.reload(folder, self.fresh(taught), plan.design)
        found = language.mean_nats(expert.decoder, expert.gates, rows, batch, compute=products)
        off = language.mean_nats(base.decoder, plain, rows, batch, compute=products)
        require_types(folder / MANIFEST, expert.stored.manifest, {"metrics": {"validation_nats": float}})
        said = expert.stored.manifest["metrics"]["validation_nats"]
        idle = plan.kind.idle_part(expert, base.decoder)
        if abs(found - said) > 1e-4 * said or idle:
            got = f"{found:.6f}" + (f", and {idle} changes nothing" if idle else "")
            refuse("metrics.validation_nats", f"{said:.6f}", got)
        return {"validation_nats": found, "manifest": said, "base": off, "gain": off - found}

    # --- mixtures

    def read_experts(self, folders: Mapping[str, Path]) -> dict[str, Stored]:
        return {name: self.kind.read(folder, self.foundation) for name, folder in folders.items()}

    def warnings(self, folder: Path) -> list[str]:
        return self.kind.warnings(folder, self.foundation.tokenizer)

    @cached_property
    def mixture(self) -> StoredMixture:
        return load_mixture(self.run.mixture_at, compute=self.compute)

    def frozen_experts(self, folders: Mapping[str, Path]) -> Decoder:
        decoder = self.fresh().decoder
        self.kind.attach(decoder, [*self.read_experts(folders).values()])
        return decoder.requires_grad_(False)

    def losses(self, experts: Decoder, rows: Sequence[Tokens]) -> Weighed:
        return text_losses(experts, [*rows])

    # --- evaluation

    def score(self, name: str, plan: Plan | None, folder: Path | None) -> Judged:
        """Score the base, an expert, a control that was trained, the merged average, or all experts alike."""
        batch, rows = self.recipe.evaluate.batch, self.test_rows
        n, (which, _, expert) = sum(map(len, rows.values())), name.partition(":")
        if plan and folder:
            control = plan.kind.reload(folder, self.fresh(), plan.design)
            gates = control.gates(n)
            weights = None if gates is None else gates.weights
            return score(control.decoder.score, rows, weights, batch, self.compute.device)
        if which == "average":
            average = self.kind.average(self.fresh(self.compute.whole).decoder, in_order(self.mixture))
            return score(average.score, rows, None, batch, self.compute.device)
        names = self.mixture.model.names
        if which == "uniform":
            return self.score_weights(controls.uniform(n, len(names)))
        return self.score_weights(controls.fixed(names.index(expert) if expert else -1, n, len(names)))

    def score_weights(self, weights: Weights | None) -> Judged:
        batch, device = self.recipe.evaluate.batch, self.compute.device
        return score(self.mixture.model.score, self.test_rows, weights, batch, device)

    def score_model(self, mixture: Routed) -> Judged:
        return score(mixture.score, self.test_rows, None, self.recipe.evaluate.batch)

    def shown(self, scores: Judged) -> str:
        return f"{scores.mean():.3f} nats a token"

    def findings(
        self, scores: dict[str, Judged], weights: Weights, trained: Mapping[str, tuple[Plan, Path]]
    ) -> Findings:
        """The texts that the mixture writes, its costs and its speed."""
        stored, base = self.mixture, self.foundation.decoder
        alone = {name: plan.kind.reload(at, self.fresh(), plan.design) for name, (plan, at) in trained.items()}
        counts = self.kind.counts(base, stored.model, in_order(stored), weights)
        facts: dict[str, Any] = {"parameters": counts, "samples": self.samples(stored)}
        every = [row for rows in self.test_rows.values() for row in rows]
        inside = stored.kind.shares_trunk and self.recipe.mixture.level == "token"
        routing = self.kind.first(stored.model, in_order(stored))[0] if inside else base
        if sparse := layer_utilisation(routing, every, self.recipe.evaluate.batch):
            facts["sparse_layers"] = sparse
        engine = Engine(stored.model, stored.tokenizer, self.compute.device)
        facts |= written(self, engine)
        speeds = {
            "base": tokens_per_second(base, None),
            "router": tokens_per_second(*self.kind.first(stored.model, in_order(stored))),
        }
        speeds |= {name: tokens_per_second(one.decoder, one.gates(1)) for name, one in alone.items()}
        own = num_parameters(base) - asleep(base)
        parameters = {"base": own, "average": own, "router": counts["active"]}
        parameters |= {f"expert:{name}": self.kind.cost(base, one) for name, one in stored.experts.items()}
        parameters |= {name: trained[name][0].kind.cost(base, one.stored) for name, one in alone.items()}
        width = base.norm.weight.element_size()
        costs = {name: Cost(parameters=count, bytes=count * width) for name, count in parameters.items()}
        timing = {"tokens_per_second": {name: round(rate, 1) for name, rate in speeds.items()}}
        return Findings(costs, {}, facts, timing | latencies(self, engine))

    def samples(self, stored: StoredMixture) -> list[dict[str, Any]]:
        """A few prompts of each domain, with the mixture's routing, its texts, and those of the base."""
        engine, shown = Engine(stored.model, stored.tokenizer, self.compute.device), []
        for domain, some in self.test_rows.items():
            for row in some[: self.recipe.evaluate.samples]:
                room, given = stored.model.context - row.prompt, row.ids[: row.prompt]
                if room < 1:
                    continue
                new = min(SAMPLE_TOKENS, room)
                ((made,),) = engine.generate([given], max_new_tokens=new, sampling=Sampling())
                ((unaided,),) = engine.generate([given], max_new_tokens=new, sampling=Sampling(), expert=BASE)
                shown.append(
                    {
                        "domain": domain,
                        "prompt": stored.tokenizer.decode(given),
                        "cut": row.cut,
                        "text": made.text,
                        "base": unaided.text,
                        "finish": made.finish,
                        "chosen": made.routing.chosen,
                        "weights": made.routing.weights,
                        "reference": stored.tokenizer.decode(row.ids[row.prompt :]),
                        "tokens": owned(stored, row, self.compute.device),
                    }
                )
        return shown


def in_order(stored: StoredMixture) -> list[Stored]:
    """The experts of a mixture, in the order of its router's names."""
    return [stored.experts[name] for name in stored.model.names]


def owned(stored: StoredMixture, row: Tokens, device: torch.device) -> list[list[Any]]:
    """For each token of a row its text, the part that predicts it best, and the nats of that part and of the base.

    Prompt and reference are decoded each by itself, and the texts of the tokens join to them.
    """
    texts = pieces(stored.tokenizer.decode, row.ids[: row.prompt])
    texts += pieces(stored.tokenizer.decode, row.ids[row.prompt :])
    owners = token_owners(stored.model.score, row.ids, tuple(stored.model.names), device)
    rounded = ((who, *(nats and round(nats, 4) for nats in both)) for who, *both in owners)
    return [[text, *owner] for text, owner in zip(texts, rounded, strict=True)]
