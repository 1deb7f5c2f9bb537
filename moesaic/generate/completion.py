"""Completions of tokens, as the generator of the Llama models gives them: with log-probabilities, and with the prompt.

Knows nothing about chat templates, nor where a model comes from.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from moesaic.errors import DataError, whole
from moesaic.generate.engine import Engine
from moesaic.generate.request import Generation, RoutingReport, Settings
from moesaic.ops.losses import token_nll
from moesaic.routing import Gates


@dataclass(frozen=True)
class Completion:
    """The continuation of a prompt. `generation`: its text; `ids` and `tokens`: of each token the id and the text.

    With `echo`, all of them begin with the prompt. `logprobs`: of each token, where they are asked for; the first token
    of an echoed prompt has none.
    """

    generation: str
    ids: list[int]
    tokens: list[str]
    logprobs: list[float | None]


def completions(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    vocab_size: int,
    settings: Settings,
    logprobs: bool,
    echo: bool,
    steady: bool,
) -> list[Completion]:
    """Continue prompts of tokens, all with the same settings; DataError for ids that are no tokens of the model.

    `steady`: one decision holds for all tokens of a prompt and its continuation.
    """
    given = [[whole(id, f"prompts[{index}]", "ids of tokens") for id in ids] for index, ids in enumerate(prompts)]
    for index, ids in enumerate(given):
        if wrong := [id for id in ids if not 0 <= id < vocab_size]:
            expected = f"ids from 0 to {vocab_size - 1}"
            raise DataError("not a token", field=f"prompts[{index}]", expected=expected, got=wrong[0])
    asked: Settings = {**settings, "logprobs": 0 if logprobs else None}
    both = zip(given, (row for (row,) in engine.generate(given, **asked)), strict=True)
    return [completed(engine, ids, row, logprobs and echo, echo, steady) for ids, row in both]


def completed(engine: Engine, given: list[int], made: Generation, scored: bool, echo: bool, steady: bool) -> Completion:
    """The continuation of one prompt. `scored`: with the log-probabilities of the prompt's tokens."""
    decode, ids = engine.tokenizer.decode, [*given, *made.ids]
    found: list[float | None] = [one.logprob for one in made.logprobs]
    if scored:
        found = [None, *of_prompt(engine, given, made.routing if steady else None), *found]
    start, text = 0 if echo else len(given), decode(ids)
    shown = ids[start:]
    return Completion(text[len(decode(ids[:start])) :], shown, [decode([id]) for id in shown], found)


@torch.inference_mode()
def of_prompt(engine: Engine, ids: list[int], routing: RoutingReport | None) -> list[float]:
    """The log-probabilities of a prompt's tokens behind the first, by the experts that continue it.

    `routing`: None where the router decides anew before every token.
    """
    if len(ids) < 2:
        return []
    names, gates = engine.mixture.names, None
    if routing is not None:
        weights = torch.tensor([[routing.weights[name] for name in names]], device=engine.device).view(1, len(names))
        gates = Gates.of(weights)
    text, targets = torch.tensor([ids[:-1]], device=engine.device), torch.tensor([ids[1:]], device=engine.device)
    return (-token_nll(engine.mixture.score(text, gates), targets))[0].tolist()
