"""A small mixture of every kind, at every level and with every way to combine, for checks of devices and types."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from small_mixtures import NAMES

from moesaic.adapters import attach, feedforward
from moesaic.adapters.lora import LowRankLinear
from moesaic.adapters.tensor_train import TensorTrain
from moesaic.config import Feature
from moesaic.model.deciding import Decider
from moesaic.model.decoder import Decoder
from moesaic.model.mixture import AdapterMixture
from moesaic.model.whole import ModelMixture
from moesaic.routing import Selection
from moesaic.routing.routers import KeywordRouter
from moesaic.testing import FunctionRouter, tiny_decoder, toy_expert, toy_ffn

TEXT = Feature.parse("text")


def base(seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Decoder:
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
    """Adapters beside a base that routes its own tokens, so clearly that no rounding changes a choice."""
    mixture = adapters(["q_proj", "o_proj"], seed=2, num_experts=4, experts_per_token=2)
    with torch.no_grad():
        for layer in mixture.decoder.layers:
            layer.mlp.gate.weight.mul_(8)
    return mixture


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


MIXTURES: dict[str, Callable[[], AdapterMixture | ModelMixture]] = {
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


def in_type(mixture: AdapterMixture | ModelMixture, dtype: torch.dtype) -> AdapterMixture | ModelMixture:
    """The mixture with its models in another type, but not its router and adapters."""
    models = [mixture.decoder] if isinstance(mixture, AdapterMixture) else mixture.models
    for model in models:
        model.to(dtype)
        for module in model.modules():
            if isinstance(module, LowRankLinear):
                module.a.data, module.b.data, module.scale = (one.float() for one in (module.a, module.b, module.scale))
    return mixture
