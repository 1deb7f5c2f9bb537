"""Property: forwards and steps of training stay on one device, and decoding waits for nothing but a decision.

The device is fake, so no accelerator is needed: see `fake_device`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from fake_device import DEVICE, card, there
from small_mixtures import NAMES

from moesaic.adapters import attach, feedforward
from moesaic.adapters.tensor_train import TensorTrain
from moesaic.config import Feature
from moesaic.model.deciding import Decider
from moesaic.model.decoder import Decoder
from moesaic.model.features import Prompts
from moesaic.model.mixture import AdapterMixture
from moesaic.model.whole import ModelMixture
from moesaic.routing import Selection
from moesaic.routing.routers import KeywordRouter
from moesaic.testing import FunctionRouter, tiny_decoder, toy_expert, toy_ffn

F32, BF16 = torch.float32, torch.bfloat16
LENGTHS = [5, 3, 4]
WEIGHTS = {
    "one expert": [[0.0, 1.0]] * 3,
    "an expert a row": [[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]],
    "soft": [[0.25, 0.75], [0.5, 0.5], [0.75, 0.25]],
    "base too": [[0.0, 0.0], [1.0, 0.0], [0.25, 0.25]],
}
TEXT = Feature.parse("text")


def base(seed: int = 0, dtype: torch.dtype = F32, **changes: Any) -> Decoder:
    return tiny_decoder(seed, dtype, num_layers=2, vocab_size=257, **changes)


def decided(body: Decoder, router: Any, feature: Feature) -> Decider:
    return Decider.over(body, NAMES, router, feature, Selection(kind="soft"))


def words() -> KeywordRouter:
    return KeywordRouter([["sum"], ["def"]])


def adapters(targets: Sequence[str] = ("q_proj", "o_proj", "down_proj"), **changes: Any) -> AdapterMixture:
    decoder = base(**changes)
    attach(decoder, [toy_expert(decoder, seed, targets=[*targets]) for seed in (1, 2)])
    return AdapterMixture(decoder, decided(decoder, words(), TEXT), 0)


def sparse() -> AdapterMixture:
    """In bfloat16: on a card torch multiplies no other type in groups without waiting."""
    return adapters(["q_proj", "o_proj"], dtype=BF16, num_experts=4, experts_per_token=2)


def trains() -> AdapterMixture:
    decoder, generator = base(), torch.Generator().manual_seed(0)
    made = [TensorTrain.fresh(decoder, 2, 1.0, ["q_proj"], range(9), generator) for _ in range(2)]
    attach(decoder, [one.lora() for one in made])
    return AdapterMixture(decoder, decided(decoder, words(), TEXT), 0)


def blocks() -> AdapterMixture:
    """The first expert has a block in every layer, the second in one."""
    decoder = base()
    feedforward.attach(decoder, [toy_ffn(decoder, 1), toy_ffn(decoder, 2, range(1, 2))])
    return AdapterMixture(decoder, decided(decoder, words(), TEXT), 0)


def models(combine: Any = "mixture", level: Any = "sequence", feature: str = "text", own: bool = False) -> ModelMixture:
    """Two experts, of which the base is one where it is `own`."""
    decoder = base()
    experts = [base(1), decoder if own else base(2)]
    router = words() if feature == "text" else FunctionRouter(lambda states: states[:, :2])
    return ModelMixture(decoder, experts, decided(decoder, router, Feature.parse(feature)), level, combine)


MIXTURES: dict[str, Callable[[], Any]] = {
    "linear": adapters,
    "linear, windows": lambda: adapters(window=3, local_layers=(0,), local_rope_theta=100.0),
    "tt_lora": trains,
    "ffn": blocks,
    "sparse base": sparse,
    "models, mixture": models,
    "models, product": lambda: models("product"),
    "models, base as expert": lambda: models(own=True),
    "token, all blocks": lambda: models(level="token", feature="hidden_mean"),
    "token, some blocks": lambda: models(level="token", feature="hidden@1_last"),
    "token, embedding": lambda: models("product", level="token", feature="embedding_mean"),
}
CASES = [
    *(("linear", given) for given in WEIGHTS),
    *(("ffn", given) for given in WEIGHTS),
    *((kind, "base too") for kind in MIXTURES if kind not in ("linear", "ffn")),
]


def prompts() -> Prompts:
    ids = torch.zeros(3, 5, dtype=torch.long, device=DEVICE)
    return Prompts(ids, torch.zeros(3, dtype=torch.long, device=DEVICE), ["a sum", "def", "none"])


def asked(mixture: Any, given: str) -> list[Any]:
    """What the host reads of a decision: the shares of models and base; or the weights, and those of ffn slots."""
    weights = WEIGHTS[given]
    if isinstance(mixture, ModelMixture):
        return [rested(weights, (0, 1))]
    return [weights, *(rested(weights, group) for group in mixture.groups)]


def rested(weights: list[list[float]], experts: Sequence[int]) -> list[list[float]]:
    chosen = [[row[expert] for expert in experts] for row in weights]
    return [[*row, 1 - sum(row)] for row in chosen]


@pytest.mark.parametrize(("kind", "given"), CASES)
@torch.no_grad()
def test_prompts_are_read_and_rows_decode_on_one_device_without_waiting(kind, given):
    real, token = MIXTURES[kind](), kind.startswith("token")
    with card() as device:
        mixture = there(real)
        room = mixture.room(3, 9)
        device.reads = [LENGTHS, *asked(real, given)]
        logits, session = mixture.prefill(prompts(), room, room.spare.take(3))
        assert not device.reads, "lengths and decisions, each once for all layers"
        for _ in range(2):
            device.waits, device.reads = 0, asked(real, given) if token else []
            logits, session = mixture.decode(logits.argmax(-1), session)
            assert device.waits == token, "where each token is decided about, the decision says which models compute"
        assert logits.shape == (3, 257) and logits.device == DEVICE
