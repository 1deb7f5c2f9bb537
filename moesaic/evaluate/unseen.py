"""Nats of any model on files that it was not trained for: a base, a merge, one expert, or a mixture beside its base.

Knows nothing about recipes or run directories.
"""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch

from moesaic.data.batches import Tokens, encode_all
from moesaic.data.facts import spelling
from moesaic.data.rows import read_examples
from moesaic.errors import DataError, MoesaicWarning, RecipeError
from moesaic.evaluate.score import score
from moesaic.evaluate.statistics import UNSEEN, Scores, paired
from moesaic.generate.loaded import WritingModel, load
from moesaic.hardware import AUTO
from moesaic.model.features import Prompts
from moesaic.routing import Routing
from moesaic.tokenizer import Tokenizer

LENGTH, PROMPT_TOKENS, BATCH = 256, 64, 16
"""The defaults of a recipe: tokens of a row, those of plain text that count as its prompt, and rows of a batch."""


def judge_unseen(
    place: str | os.PathLike[str],
    files: Sequence[str | os.PathLike[str]],
    *,
    base: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    device: str = AUTO,
    dtype: str = "float32",
) -> dict[str, Any]:
    """Score a model on files of rows, ready for JSON; `limit`: the first rows of each file.

    `device`, `dtype`: see `moesaic.load`.

    {model, files: {file: {rows, tokens, nats (per token), chosen ({name: share of rows})}}}, and for a model with
    experts also base_nats and difference {mean, low, high}: its nats minus those of its base, with a paired 95%
    interval over the rows.
    """
    if not files:
        raise RecipeError("no files", field="unseen", hint="name a file of rows")
    model = load(place, base=base, device=device, dtype=dtype).writer
    return {"model": repr(model), "files": {os.fspath(file): judged(model, Path(file), limit) for file in files}}


@torch.inference_mode()
def judged(model: WritingModel, file: Path, limit: int | None) -> dict[str, Any]:
    """The figures of one file."""
    engine = model.engine
    length = min(LENGTH, engine.mixture.context)
    tokenizer = cast(Tokenizer, engine.tokenizer)
    examples = read_examples(file)[:limit]
    if spelled := spelling(examples, tokenizer.spelled):
        warnings.warn(f"{file}: {spelled}", MoesaicWarning, stacklevel=2)
    rows, _ = encode_all(examples, tokenizer, length, PROMPT_TOKENS)
    if not rows:
        raise DataError("no usable row", path=file)
    routing = decided(model, [row.ids[: row.prompt] for row in rows])
    own = scored(model, rows, None if model.level == "token" else routing)
    known = [*model.names, "base"]
    chosen = [known[best] for best in routing.best.tolist()]
    found: dict[str, Any] = {"rows": len(rows), "tokens": int(own.tokens.sum()), "nats": own.mean(UNSEEN)}
    found["chosen"] = {name: chosen.count(name) / len(rows) for name in known if name in chosen}
    if not model.names:
        return found
    alone = scored(model, rows, Routing(torch.zeros_like(routing.weights), routing.logits))
    difference = paired(own, alone, UNSEEN)
    interval = {"mean": difference.mean, "low": difference.low, "high": difference.high}
    return {**found, "base_nats": alone.mean(UNSEEN), "difference": interval}


def decided(model: WritingModel, prompts: Sequence[list[int]]) -> Routing:
    """The decision of a model's router about each prompt."""
    parts = []
    for at in range(0, len(prompts), BATCH):
        some = [*prompts[at : at + BATCH]]
        texts = [model.engine.tokenizer.decode(ids) for ids in some]
        parts.append(model.engine.mixture.route(Prompts.pad(some, texts, model.engine.device)))
    return Routing.cat(parts)


def scored(model: WritingModel, rows: list[Tokens], routing: Routing | None) -> Scores:
    weights = None if routing is None else routing.weights
    return score(model.engine.mixture.score, {UNSEEN: rows}, weights, BATCH, model.engine.device)
