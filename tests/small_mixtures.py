"""Small mixtures of every site, and requests that differ in all that a request can say."""

from dataclasses import replace

import torch

from moesaic.adapters import attach, feedforward, token_ffn
from moesaic.adapters.feedforward import FFN
from moesaic.config import SHARES, Feature
from moesaic.generate import Engine, Generation, Request, Sampling
from moesaic.model.deciding import Decider
from moesaic.model.decoder import Decoder
from moesaic.model.mixture import AdapterMixture
from moesaic.model.token import TokenMixture
from moesaic.model.whole import ModelMixture
from moesaic.routing import Selection
from moesaic.routing.routers import GatesRouter, KeywordRouter
from moesaic.testing import FunctionRouter, tiny_decoder, toy_expert, toy_ffn

NAMES = ("maths", "code")
KINDS = ["linear", "ffn", "model", "trunk", "token", "gates"]
TEXT, WORDS = Feature.parse("text"), KeywordRouter([["sum"], ["def", "code"]])
WARM = Sampling(temperature=1.5, top_p=0.95, seed=7)
REQUESTS = [
    Request(prompt="add the sum", max_new_tokens=9),
    Request(prompt="def f", max_new_tokens=4, sampling=WARM, n=2),
    Request(prompt="hello there, you", max_new_tokens=12, sampling=Sampling(temperature=0.7, top_k=5, seed=3)),
    Request(prompt="a sum of code", max_new_tokens=7, expert="code"),
    Request(prompt="def g", max_new_tokens=5, expert="base", sampling=WARM),
    Request(prompt=[5, 6, 7], max_new_tokens=3, stop=("\x01", "~")),
]


def mixture(kind: str) -> AdapterMixture | ModelMixture | TokenMixture:
    """Two experts over one base: adapters, blocks, models of the prompt or every token, and blocks of every token."""
    base = tiny_decoder(vocab_size=257)
    if kind == "gates":
        return gated(base, [toy_ffn(base, seed) for seed in (1, 2)])
    if kind == "trunk":  # its router reads the block that no expert changes
        attach(base, [toy_expert(tiny_decoder(vocab_size=257), seed, layers=range(1, 99)) for seed in (1, 2)])
        router = FunctionRouter(lambda states: states[:, :2].sign())
        return AdapterMixture(
            base, Decider.over(base, NAMES, router, Feature.parse("hidden@1"), Selection(kind="soft")), 1
        )
    if kind == "linear":
        attach(base, [toy_expert(tiny_decoder(vocab_size=257), seed) for seed in (1, 2)])
    elif kind == "ffn":
        feedforward.attach(base, [toy_ffn(base, seed) for seed in (1, 2)])
    else:
        experts = [tiny_decoder(seed, vocab_size=257) for seed in (1, 2)]
        if kind == "token":
            changing = FunctionRouter(lambda states: states[:, :2] * 3)  # decides anew from token to token
            decider = Decider.over(base, NAMES, changing, Feature.parse("hidden@2_last"), Selection())
            return ModelMixture(base, experts, decider, "token")
        return ModelMixture(base, experts, Decider.over(base, NAMES, WORDS, TEXT, Selection(kind="soft")))
    return AdapterMixture(base, Decider.over(base, NAMES, WORDS, TEXT, Selection(kind="soft")), 0)


def gated(base: Decoder, experts: list[FFN], k: int = 2, seed: int = 0) -> TokenMixture:
    """A mixture with random gates in all layers."""
    generator, layers = torch.Generator().manual_seed(seed), len(base.layers)
    rows = {f"layers.{layer}.mlp": torch.randn(len(experts), 32, generator=generator) for layer in range(layers)}
    token_ffn.attach(base, base.config, experts, rows, k)
    router = GatesRouter.of(rows, k)
    return TokenMixture(base, Decider.over(base, NAMES[: len(experts)], router, SHARES, Selection(kind="soft")))


def near(made: Generation) -> Generation:
    """A continuation with probabilities and weights in as many digits as do not depend on the rows beside it."""
    told = (made.routing.probabilities, made.routing.weights)
    shares, weights = ({name: round(share, 5) for name, share in some.items()} for some in told)
    return replace(made, routing=replace(made.routing, probabilities=shares, weights=weights))


def alone(engine: Engine, request: Request) -> list[Generation]:
    return [near(engine.answer([replace(request, n=1, sampling=sampling)])[0][0]) for sampling in seeds(request)]


def seeds(request: Request) -> list[Sampling]:
    start = request.sampling.seed
    return [replace(request.sampling, seed=None if start is None else start + index) for index in range(request.n)]
