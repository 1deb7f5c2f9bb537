"""Property: on a card every mixture says what it says on the CPU, the same each time, without waits and in the memory
that is planned."""

from typing import Any

import pytest
import torch
from every_mixture import MIXTURES, in_type
from small_mixtures import REQUESTS, mixture

import moesaic
from moesaic.config import published
from moesaic.generate import Engine
from moesaic.model.decoder import Decoder
from moesaic.model.features import Prompts
from moesaic.nn import Cache
from moesaic.routing import Gates, Routing
from moesaic.testing import ByteTokenizer, prefilled

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: what only a card decides"),
]

RELATIVE = 1e-4
"""Of a logit in float32, as a share of the largest: sums of products in another order."""

WEIGHTS = [[0.0, 1.0], [0.5, 0.5], [0.25, 0.25], [0.0, 0.0]]
ROWS = [[5, 6, 7, 8, 9], [100, 3], [40, 41, 42], [9, 8, 7]]
TEXTS = ["a sum", "def", "sum def", "none"]


def prepared(kind: str, device: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Prompts, Routing]:
    weights = torch.tensor(WEIGHTS, device=device)
    model = in_type(MIXTURES[kind](), dtype).to(device)
    return model, Prompts.pad(ROWS, TEXTS, torch.device(device)), Routing(weights, weights.log())


def near(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found.cpu() - expected).abs().max() <= RELATIVE * expected.abs().max()


@pytest.mark.parametrize("kind", MIXTURES)
@torch.no_grad()
def test_logits_are_those_of_the_cpu(kind: str) -> None:
    (here, own, forced), (there, other, same) = (prepared(kind, device) for device in ("cpu", "cuda"))
    (expected, one), (found, two) = prefilled(here, own, 3, forced), prefilled(there, other, 3, same)
    near(found, expected)
    for _ in range(3):
        ids = expected.argmax(-1)
        (expected, one), (found, two) = here.decode(ids, one), there.decode(ids.cuda(), two)
        near(found, expected)
    near(there.score(other.ids, Gates.of(same.weights)), here.score(own.ids, Gates.of(forced.weights)))


@pytest.mark.parametrize("kind", ["linear", "ffn", "model", "token"])
def test_greedy_texts_are_the_same_each_time(kind: str) -> None:
    engine = Engine(mixture(kind).to("cuda"), ByteTokenizer(), torch.device("cuda"))
    requests = [request for request in REQUESTS if not request.sampling.temperature]
    once, again = engine.answer(requests), engine.answer(requests)
    assert [[one.ids for one in some] for some in once] == [[one.ids for one in some] for some in again]


@pytest.mark.parametrize("kind", [kind for kind in MIXTURES if not kind.startswith("token")])
@torch.no_grad()
def test_torch_sees_no_wait_in_a_step(kind: str) -> None:
    model, prompts, forced = prepared(kind, "cuda", torch.bfloat16)
    logits, session = prefilled(model, prompts, 3, forced)
    logits, session = model.decode(logits.argmax(-1), session)  # libraries prepare themselves at their first call
    ids = logits.argmax(-1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        model.decode(ids, session)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@torch.inference_mode()
def test_a_model_takes_what_is_planned_within_5_percent() -> None:
    rows, tokens = 4, 1024
    planned = moesaic.plan("llama-3.2-1b", batch=rows, context=tokens, dtype="bfloat16")
    config = published("llama-3.2-1b")
    before = torch.cuda.memory_allocated()
    with torch.device("cuda"):
        decoder = Decoder(config).to(torch.bfloat16)
    torch.cuda.reset_peak_memory_stats()
    assert abs((torch.cuda.memory_allocated() - before) / planned.resident - 1) <= 0.05
    cache = Cache.empty(config, rows, tokens, decoder.norm.weight)
    ids = torch.zeros(rows, tokens, dtype=torch.long, device="cuda")
    x, _ = decoder.run(decoder.embed_tokens(ids), cache, range(config.num_layers), None)
    decoder.head(x[:, -1:], None)
    taken = torch.cuda.max_memory_allocated() - before
    assert abs(taken / (planned.resident + planned.working) - 1) <= 0.05
