"""Property: forwards and steps of training stay on one device, and decoding waits for nothing but a decision.

The device is fake, so no accelerator is needed: see `fake_device`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from every_mixture import MIXTURES, adapters, base, in_type, words
from fake_device import DEVICE, card, there
from small_mixtures import NAMES
from torch import nn
from torch.nn import functional as F

from moesaic.adapters import attach, feedforward
from moesaic.adapters.tensor_train import TensorTrain
from moesaic.config import PROJECTIONS, Feature
from moesaic.generate import Request, Sampling
from moesaic.generate.flight import Flight
from moesaic.generate.request import RoutingReport
from moesaic.generate.row import Row
from moesaic.model.classifier import Classifier, ClassifierMixture, Head, Shape
from moesaic.model.deciding import Decider
from moesaic.model.decoder import Decoder
from moesaic.model.features import Prompts
from moesaic.model.mixture import AdapterMixture
from moesaic.model.whole import ModelMixture
from moesaic.ops.losses import load_balancing, router_z, token_nll
from moesaic.routing import Gates, Routing, Selection, States
from moesaic.routing.controls import fixed, uniform
from moesaic.routing.exploration import gumbel_choice, noisy
from moesaic.routing.guard import Guard, Ruling
from moesaic.routing.routers import (
    ArrowRouter,
    AttentionRouter,
    CentroidRouter,
    MLPRouter,
    Router,
    TreeRouter,
)
from moesaic.testing import ByteTokenizer, tiny_encoder, toy_expert

F32, BF16 = torch.float32, torch.bfloat16
LENGTHS = [5, 3, 4]
WEIGHTS = {
    "one expert": [[0.0, 1.0]] * 3,
    "an expert a row": [[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]],
    "soft": [[0.25, 0.75], [0.5, 0.5], [0.75, 0.25]],
    "base too": [[0.0, 0.0], [1.0, 0.0], [0.25, 0.25]],
}
CASES = [
    *(("linear", given) for given in WEIGHTS),
    *(("ffn", given) for given in WEIGHTS),
    *((kind, "base too") for kind in MIXTURES if kind not in ("linear", "ffn")),
]


def made(kind: str) -> Any:
    """A mixture; a sparse one in bfloat16, as torch multiplies no other type in groups on a card without waiting."""
    return in_type(MIXTURES[kind](), BF16) if kind == "sparse base" else MIXTURES[kind]()


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
    real, token = made(kind), kind.startswith("token")
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


SAMPLINGS = [Sampling(), Sampling(temperature=0.8), Sampling(temperature=1.0, top_k=5, top_p=0.9)]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "warm", "top_p"])
def test_a_step_of_a_flight_waits_once_for_the_tokens_that_were_drawn(sampling):
    real, weights = adapters(), torch.tensor(WEIGHTS["soft"])
    decisions = RoutingReport.each(NAMES, Routing(weights, weights.log()))
    request, tokenizer = Request(prompt="p", sampling=sampling), ByteTokenizer()
    rows = [Row(tokenizer, request, [1], 9, sampling.generators(1)[0], decision) for decision in decisions]
    write, read = Flight.write.__wrapped__, Flight.read.__wrapped__  # torch's inference mode knows no fake tensors
    with card() as device, torch.no_grad():
        mixture = there(real)
        room = mixture.room(3, 9)
        device.reads = [LENGTHS, WEIGHTS["soft"]]
        flight = Flight(rows, *mixture.prefill(prompts(), room, room.spare.take(3)))
        for tokens in ([1, 2, 3], [4, 5, 6]):
            device.waits, device.reads = 0, [tokens]
            flight, lost = write(flight, tokenizer.ends)
            flight = read(flight, mixture)
            assert device.waits == 1 and not lost
        flight = flight.select([0, 2])
        assert device.waits == 1, "rows leave without a wait"
    assert [row.ids for row in rows] == [[1, 4], [2, 5], [3, 6]]


@pytest.mark.parametrize("kind", [kind for kind in MIXTURES if "windows" not in kind])
@torch.no_grad()
def test_texts_are_scored_on_one_device(kind):
    real, token = made(kind), kind.startswith("token")
    with card() as device:
        mixture = there(real)
        weights = torch.zeros(3, 2, device=DEVICE)
        device.reads = scored(real, token)
        logits = mixture.score(prompts().ids, None if token else Gates.of(weights))
        assert logits.shape == (3, 5, 257) and logits.device == DEVICE and not device.reads


def scored(mixture: Any, token: bool) -> list[Any]:
    """What the host reads to score: the gates, then shares of models; of every token, where each is decided about."""
    read = asked(mixture, "base too")
    if token:
        return [read[0] * 5]
    return read if isinstance(mixture, AdapterMixture) else [WEIGHTS["base too"], *read]


@torch.no_grad()
def test_controls_are_made_where_they_are_asked_for():
    with card():
        assert uniform(3, 2, DEVICE).device == fixed(1, 3, 2, DEVICE).device == fixed(-1, 3, 2, DEVICE).device == DEVICE


# --- routers ----------------------------------------------------------------------------------------------------------

D = 32  # the width of tiny models
PATH = "layers.1.self_attn.o_proj"
ROUTERS: dict[str, tuple[Callable[[], Router], list[str]]] = {
    "keyword": (words, ["text"]),
    "centroid": (lambda: CentroidRouter(D, 2), ["hidden_mean"]),
    "linear": (lambda: MLPRouter(D, 2, []), ["hidden_last", "hidden@1", "hidden@1_last", "embedding_mean"]),
    "mlp": (lambda: MLPRouter(D, 2, [5]), ["hidden_mean"]),
    "characters": (lambda: MLPRouter(4096, 2, []), ["characters"]),
    "wording": (lambda: MLPRouter(8192, 2, []), ["wording"]),
    "attention": (lambda: AttentionRouter(D, 2, 8, 2), ["hidden_tokens", "embedding_tokens"]),
    "tree": (lambda: TreeRouter(D, 2, [[1], [0]], [3]), ["hidden_mean"]),
    "arrow": (lambda: ArrowRouter({PATH: D}, 2), ["projection"]),
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, (_, names) in ROUTERS.items() for name in names])
@torch.no_grad()
def test_every_router_decides_on_one_device(kind, name):
    feature = PROJECTIONS if name == "projection" else Feature.parse(name)
    decoder, router = base(), ROUTERS[kind][0]()
    with card() as device:
        decider = Decider.over(there(decoder), NAMES, moved_router(router), feature, Selection(), disabled=["maths"])
        if feature.pool == "none":
            device.reads = [sum(LENGTHS)]
        routing = decider.decide(prompts())
        assert routing.weights.device == routing.probabilities.device == DEVICE and not device.reads


def moved_router(router: Any) -> Any:
    return there(router) if isinstance(router, nn.Module) else router


@torch.no_grad()
def test_a_guard_judges_on_one_device_and_a_router_shares_the_prompts_own_pass():
    decoder, router, judge = base(), MLPRouter(D, 2, []), Guard(D, 2, [4], wording=4096).eval()
    attach(decoder, [toy_expert(decoder, seed, targets=["q_proj"], layers=range(1, 2)) for seed in (1, 2)])
    with card() as device:
        body, guard = there(decoder), there(judge)
        ruling, feature = Ruling(guard.limit, guard.joint), Feature.parse("hidden@1")
        decider = Decider.over(body, NAMES, there(router), feature, Selection(), guard=guard, ruling=ruling)
        mixture = AdapterMixture(body, decider, 1)
        room = mixture.room(3, 9)
        device.reads = [LENGTHS, WEIGHTS["base too"]]
        logits, session = mixture.prefill(prompts(), room, room.spare.take(3))
        assert logits.device == session.routing.of_base.device == DEVICE


@pytest.mark.parametrize("pool", ["first", "mean", "last"])
@torch.no_grad()
def test_texts_are_classified_on_one_device(pool):
    encoder = tiny_encoder("roberta", "pooler", dtype=F32)
    attach(encoder, [toy_expert(encoder, seed, targets=["query", "dense"]) for seed in (1, 2)])
    heads = {name: Head(Shape(("no", "yes"), dense=True), D) for name in NAMES}
    decider = Decider.over(encoder, NAMES, MLPRouter(D, 2, []), Feature.parse("hidden_mean"), Selection())
    real = ClassifierMixture(Classifier(encoder, heads, pool), decider)
    with card() as device:
        mixture = there(real)
        device.reads = [WEIGHTS["base too"]]
        answers = mixture.classify(prompts())
        assert answers.log_probabilities.shape == (3, 4) and answers.log_probabilities.device == DEVICE


# --- training ---------------------------------------------------------------------------------------------------------


def step(parameters: Sequence[nn.Parameter], loss: torch.Tensor) -> None:
    """Derive, clip and step; the fused optimiser of a training knows no fake device."""
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    torch.optim.AdamW(parameters, 1e-3, foreach=True).step()
    assert all(one.device == DEVICE for one in parameters) and loss.device == DEVICE


def lora() -> tuple[Decoder, int]:
    decoder = base()
    toy_expert(decoder, 1).adapt(decoder)
    return decoder, 1


def train_of_tensors() -> tuple[Decoder, int]:
    decoder = base()
    TensorTrain.fresh(decoder, 2, 1.0, ["q_proj", "down_proj"], range(9), torch.Generator()).adapt(decoder)
    return decoder, 1


TRAINED: dict[str, Callable[[], tuple[Decoder, int]]] = {
    "base": lambda: (base(), 0),
    "base, windows": lambda: (base(window=3, local_layers=(0,), local_rope_theta=100.0, head_filling="gate"), 0),
    "sparse": lambda: (base(dtype=BF16, num_experts=4, experts_per_token=2), 0),
    "lora": lora,
    "tt_lora": train_of_tensors,
}


@pytest.mark.parametrize("kind", TRAINED)
def test_a_step_of_training_stays_on_one_device(kind):
    real, experts = TRAINED[kind]()
    real.requires_grad_(not experts)
    for name, weight in real.named_parameters():
        if name.rpartition(".")[2] in ("a", "b") or ".inputs." in name or ".outputs." in name:
            weight.requires_grad_()
    with card():
        decoder, ids = there(real), prompts().ids
        gates = Gates.one(0, 3, 1, decoder.norm.weight) if experts else None
        parameters = [weight for weight in decoder.parameters() if weight.requires_grad]
        documents = torch.ones_like(ids) if kind == "base" else None
        output = decoder(ids, None, gates, documents)
        loss = token_nll(output.logits, ids).sum()
        for routing in output.routings:
            loss = loss if routing is None else loss + load_balancing(routing.logits) + router_z(routing.logits)
        step(parameters, loss)


@pytest.mark.parametrize("kind", ["linear", "ffn"])
def test_the_loss_of_a_mixture_reaches_its_weights_on_one_device(kind):
    real = made(kind).decoder.requires_grad_(False)
    with card() as device:
        decoder, ids = there(real), prompts().ids
        weights = torch.zeros(3, 2, device=DEVICE, requires_grad=True)
        groups = feedforward.groups(decoder)
        device.reads = [one for group in groups for one in (WEIGHTS["soft"], rested(WEIGHTS["soft"], group))]
        gates = Gates.dense(weights).ready(groups)
        nats = token_nll(decoder(ids, None, gates).logits, ids).sum()
        (slope,) = torch.autograd.grad(nats, weights)
        assert slope.device == DEVICE and not device.reads


@pytest.mark.parametrize("kind", ["linear", "mlp", "attention", "tree"])
def test_a_step_of_a_router_stays_on_one_device(kind):
    noise = {"noise": True} if kind != "tree" else {}
    fresh = {
        "linear": lambda: MLPRouter(D, 2, [], **noise),
        "mlp": lambda: MLPRouter(D, 2, [5], **noise),
        "attention": lambda: AttentionRouter(D, 2, 8, 2, **noise),
        "tree": lambda: TreeRouter(D, 2, [[1], [0]], [3]),
    }
    real = fresh[kind]()
    with card() as device:
        router, labels = there(real), torch.zeros(3, dtype=torch.long, device=DEVICE)
        vectors = torch.zeros(3, D, device=DEVICE)
        states = States(torch.zeros(12, D, device=DEVICE), torch.zeros(3, dtype=torch.long, device=DEVICE))
        device.reads = [12] if kind == "attention" else []
        logits = router(states[labels] if kind == "attention" else vectors)
        if router.noise is not None:
            logits = noisy(logits, router.noise(vectors))
        loss = F.cross_entropy(logits, labels) + load_balancing(logits) + router_z(logits)
        chosen = Selection(kind="soft")(logits).weights if kind == "tree" else gumbel_choice(logits, 1.0)
        step([*router.parameters()], loss + chosen.square().sum())


def test_a_step_of_classification_stays_on_one_device():
    encoder = tiny_encoder(dtype=F32).requires_grad_(False)
    toy_expert(encoder, 1, targets=["query"]).adapt(encoder)
    real = Classifier(encoder, {"code": Head(Shape(("no", "yes")), D)}, "mean")
    with card():
        classifier = there(real)
        found = classifier(prompts(), Gates.one(0, 3, 1, torch.zeros(1, device=DEVICE)))
        loss = F.nll_loss(found, torch.zeros(3, dtype=torch.long, device=DEVICE))
        step([weight for weight in classifier.parameters() if weight.requires_grad], loss)
